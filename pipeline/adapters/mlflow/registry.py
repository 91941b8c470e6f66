"""The model registry on an MLflow server: versions, requests for a decision, the alias `champion`.

MLflow is imported at the first call, because that takes seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.adapters.mlflow.description import description, metrics
from pipeline.adapters.mlflow.errors import bound_requests, is_code, log_in, translated
from pipeline.adapters.mlflow.fetching import check_files
from pipeline.adapters.mlflow.package import shared_files, write_model
from pipeline.adapters.mlflow.plots import write_plots
from pipeline.adapters.mlflow.probe_sets import probe_sets
from pipeline.adapters.mlflow.shared_files import keep_files
from pipeline.adapters.mlflow.tags import (
    ACTOR_TAG,
    ANSWERED_TAG,
    ASKED_BY_TAG,
    AUTHENTICATED_TAG,
    BECAUSE_TAG,
    DIGEST_TAG,
    DUPLICATE_TAG,
    NOTE_TAG,
    OUTCOME_TAG,
    PACKAGE_TAG,
    REASON_TAG,
    REQUEST_TAG,
    SNAPSHOT_TAG,
    is_of_before,
    is_sealed,
    logged_name,
    model_id_of,
    quoted,
    request_of,
    tags_of,
    version_of,
)
from pipeline.domain.errors import IntegrityBroken, Misconfigured
from pipeline.domain.formats.packages import package_digest
from pipeline.domain.review.approvals import CLAIMED
from pipeline.domain.scratch import scratch_folder
from pipeline.domain.snapshots import Snapshot
from pipeline.services.registry.links import charts_link, review_link, run_link
from pipeline.services.registry.registry_ports import RegisteredVersion, RegistryEntry, RegistryRequest, Seal

DECISION_ALIASES = ("approved", "rejected")
CHAMPION = "champion"
MAX_TAG_CHARS = 1_000
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


class MlflowRegistry:
    """The registry of one MLflow server, whose address is that of its tracking server."""

    def __init__(
        self,
        uri: str,
        *,
        username: str = "",
        password: str = "",
        tells_actor: bool = False,
        pages: str = "",
        review_pages: str = "",
    ) -> None:
        """Name the server; nothing is asked yet.

        Args:
            uri: its address.
            username: Corrigenda's own user there; the environment's if left out.
            password: of that user.
            tells_actor: whether it runs `infra/mlflow_login.py`; else anybody could have written who asks.
            pages: its address as browsers reach it, for links on its pages; `uri` if left out.
            review_pages: address of Corrigenda's own pages, for a link to the snapshot there; none if left out.
        """
        if not uri:
            raise Misconfigured("expected the address of an MLflow server, got nothing")
        self._uri = uri
        self._username = username
        self._password = password
        self._tells_actor = tells_actor
        self._pages = pages or uri
        self._review_pages = review_pages

    def register(self, entry: RegistryEntry, *, seal: Seal) -> str:
        """Make the model version of a snapshot, once; return its number.

        `create_model_version` is not idempotent, so a reply that got lost leaves a version that is found here by
        its tags. Of several versions of one snapshot the lowest that was sealed is canonical; the others are marked.

        Raises:
            Unavailable: if MLflow does not answer.
            Misconfigured: if it refuses.
            IntegrityBroken: if the registry holds the snapshot under another digest.
        """
        name, snapshot = entry.lineage.settings.name, entry.snapshot
        wanted = f"tags.`{SNAPSHOT_TAG}` = '{snapshot.snapshot_id}'"
        with translated(f"register snapshot {snapshot.snapshot_id}"):
            sealed, found = snapshot.package_digest, self._versions(name, wanted)
            if not any(map(is_sealed(sealed), found)) and not is_of_before(snapshot, found):
                sealed = self._create(entry, seal, is_again=bool(found))
                found = self._versions(name, wanted)
            return self._canonical(name, snapshot, found, sealed)

    def find(self, lineage: str, version: str) -> RegisteredVersion | None:
        """Return a version, if it and the logged model that it points to are still there."""
        with translated(f"look for {lineage} version {version}"):
            try:
                found = self._client.get_model_version(lineage, version)
                if model_id := model_id_of(found):
                    self._client.get_logged_model(model_id)
            except Exception as error:
                if is_code(error, *_MISSING):
                    return None
                raise
            return version_of(found)

    def check_package(self, lineage: str, version: str, expected: str) -> None:
        """Fetch the files of a version, and those that they name, and check them; nothing of them is run.

        Raises:
            IntegrityBroken: if a file was changed, added or taken away.
            Unavailable: if MLflow does not answer.
            Misconfigured: if it has no such version, or a file that it names is gone.
        """
        with translated(f"check the files of {lineage} version {version}"):
            source = self._client.get_model_version_download_uri(lineage, version)
            check_files(source, expected, tracking_uri=self._uri)

    def requests(self, lineage: str) -> tuple[RegistryRequest, ...]:
        """Return the versions on which somebody asks for a decision that is not answered yet."""
        with translated(f"read the requests of {lineage}"):
            aliases, tells = self._aliases(lineage), self._tells_actor
            by_alias = {
                alias: self._client.get_model_version(lineage, aliases[alias])
                for alias in DECISION_ALIASES
                if alias in aliases
            }
            asked = [request_of(v, decision=alias, by_alias=True, tells=tells) for alias, v in by_alias.items()]
            for version in self._versions(lineage, f"tags.`{REQUEST_TAG}` LIKE '%'"):
                decision = version.tags[REQUEST_TAG].strip().casefold()
                asked.append(request_of(version, decision=decision, by_alias=False, tells=tells))
            return tuple(asked)

    def answer(self, lineage: str, request: RegistryRequest, *, outcome: str) -> None:
        """Take the request off and write what became of it on the version.

        The outcome comes first: dying in between leaves a request that is found and answered again.
        """
        with translated(f"answer the request on {lineage} version {request.version}"):
            tags = {OUTCOME_TAG: outcome, ANSWERED_TAG: datetime.now(UTC).isoformat(timespec="seconds")}
            tags[ASKED_BY_TAG] = request.authenticated or (request.actor or "unknown").removesuffix(CLAIMED) + CLAIMED
            if request.reason:
                tags[BECAUSE_TAG] = request.reason
            self._tag(lineage, request.version, tags)
            if request.by_alias:
                if self._aliases(lineage).get(request.decision) == request.version:
                    self._client.delete_registered_model_alias(lineage, request.decision)
            else:
                self._untag(lineage, request.version, REQUEST_TAG)
            self._untag(lineage, request.version, ACTOR_TAG)
            self._untag(lineage, request.version, REASON_TAG)
            self._untag(lineage, request.version, AUTHENTICATED_TAG)

    def champion(self, lineage: str) -> str | None:
        """Return the version that the alias `champion` points to; None if there is no alias."""
        with translated(f"read the alias {CHAMPION} of {lineage}"):
            return self._aliases(lineage).get(CHAMPION)

    def point_champion(self, lineage: str, version: str | None) -> None:
        """Point the alias `champion` to a version, or remove it for None."""
        with translated(f"point the alias {CHAMPION} of {lineage} to {version or 'nothing'}"):
            found = self._aliases(lineage).get(CHAMPION)
            if found == version:
                return
            if version is None:
                self._client.delete_registered_model_alias(lineage, CHAMPION)
            else:
                self._client.set_registered_model_alias(lineage, CHAMPION, version)

    def note(self, lineage: str, version: str, *, text: str) -> None:
        """Write a sentence for people on a version; nothing happens if the version is gone."""
        with translated(f"write a note on {lineage} version {version}"):
            try:
                self._tag(lineage, version, {NOTE_TAG: text})
            except Exception as error:
                if not is_code(error, *_MISSING):
                    raise

    @cached_property
    def _client(self) -> Any:
        bound_requests()
        log_in(self._username, self._password)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def _create(self, entry: RegistryEntry, seal: Seal, *, is_again: bool) -> str:
        name, client = entry.lineage.settings.name, self._client
        tags = tags_of(entry)
        experiment_id = self._experiment(name)
        self._ensure_model(name)
        accumulator = entry.plan.accumulator
        group = accumulator.digest[:16] if accumulator else "base"  # an accumulator and the deltas on top: at most 32
        uris = keep_files(client, experiment_id, group, shared_files(entry.plan), is_again=is_again)
        label = f"{name}-{entry.snapshot.seq:04d}"
        run_id = client.create_run(experiment_id, run_name=label, tags=tags).info.run_id
        model_id = client.create_logged_model(
            experiment_id, name=logged_name(label), source_run_id=run_id, tags=tags, model_type="corrigenda.snapshot"
        ).model_id
        with scratch_folder("register") as folder:
            model = write_model(entry, Path(folder), uris, run_id=run_id, model_id=model_id)
            sealed = package_digest(model)
            seal(sealed)
            client.log_model_artifacts(model_id, str(model))
            client.log_artifacts(run_id, str(Path(folder, "report")))
            client.log_artifacts(run_id, str(write_plots(entry, Path(folder))), "plots")
        client.finalize_logged_model(model_id, "READY")
        self._log_run(run_id, entry, model_id)
        version = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags=tags | {PACKAGE_TAG: sealed},
            description=description(
                entry,
                links=self._links(entry, experiment_id, run_id),
                pages=self._pages,
                review_pages=self._review_pages,
                tells_actor=self._tells_actor,
            ),
            model_id=model_id,
            await_creation_for=None,
        ).version
        # With this tag MLflow's pages lead from the logged model to its version.
        client.set_logged_model_tags(
            model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version}])}
        )
        return sealed

    def _log_run(self, run_id: str, entry: RegistryEntry, model_id: str) -> None:
        from mlflow.entities import Metric, Param

        now, step = int(time.time() * 1000), entry.snapshot.seq
        editor = entry.plan.editor
        params = {
            "solver": editor.solver,
            "transform": str(entry.lineage.settings.editor_identity),
            "num_passes": editor.num_passes,
        }
        params |= {"snapshot_seq": step, "num_edits": len(entry.edits), "gate_verdict": entry.report.get("verdict")}
        params |= {"base_ref": entry.plan.base.ref, "policy_digest": str(entry.report.get("policy_digest", ""))}
        self._client.log_batch(
            run_id,
            metrics=[
                Metric(key, value, now, step, model_id=model_id, run_id=run_id) for key, value in metrics(entry).items()
            ],
            params=[Param(key, str(value)) for key, value in params.items()],
        )
        self._client.log_inputs(run_id, datasets=probe_sets(entry))
        self._client.update_run(run_id, status="FINISHED")  # set_terminated prints

    def _links(self, entry: RegistryEntry, experiment_id: str, run_id: str) -> str:
        """Return the line of links to what is shown beside a version."""
        pages, review, seq = self._pages, self._review_pages, entry.snapshot.seq
        found = {
            "snapshots compared in charts": charts_link(pages, experiment_id),
            "plots": run_link(pages, experiment_id, run_id, tab="artifacts/plots/lineage.png"),
            "reports": run_link(pages, experiment_id, run_id, tab="artifacts"),
            "the run": run_link(pages, experiment_id, run_id),
        }
        found |= {"the review page": review_link(review, entry.lineage.settings.name, seq)} if review else {}
        return f"See {', '.join(f'[{words}]({link})' for words, link in found.items())}.\n"

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":  # it keeps its name, so that no other can be made
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except Exception as error:
            if not is_code(error, "RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name, description="Edited models of one Corrigenda lineage.")
        except Exception as error:
            if not is_code(error, "RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise

    def _canonical(self, name: str, snapshot: Snapshot, found: Sequence[Any], sealed: str | None) -> str:
        first = next(filter(is_sealed(sealed), found), None)
        if first is None:
            raise Misconfigured(f"expected the version just made for snapshot {snapshot.snapshot_id}, found none")
        others = [version for version in found if version is not first]
        if first.tags.get(DIGEST_TAG) != snapshot.digest:
            raise IntegrityBroken(
                f"expected {name} version {first.version} to carry the digest {snapshot.digest[:12]}, "
                f"got {str(first.tags.get(DIGEST_TAG))[:12]}"
            )
        for other in others:
            if DUPLICATE_TAG not in other.tags:
                self._tag(name, other.version, {DUPLICATE_TAG: str(first.version)})
        return str(first.version)

    def _versions(self, name: str, condition: str) -> list[Any]:
        """Return the versions of a model that meet a condition, lowest number first."""
        found, token = [], None
        while True:
            page = self._client.search_model_versions(f"name = {quoted(name)} and {condition}", page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))

    def _aliases(self, name: str) -> dict[str, str]:
        try:
            aliases = self._client.get_registered_model(name).aliases
        except Exception as error:
            if is_code(error, *_MISSING):
                return {}
            raise
        return {str(alias): str(version) for alias, version in aliases.items()}

    def _tag(self, name: str, version: str, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(name, version, key, value[:MAX_TAG_CHARS])

    def _untag(self, name: str, version: str, key: str) -> None:
        try:
            self._client.delete_model_version_tag(name, version, key)
        except Exception as error:
            if not is_code(error, *_MISSING):
                raise
