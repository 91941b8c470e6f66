"""What every model registry does, in memory and on a real MLflow server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from infra.local import LocalStack
from pipeline.adapters.mlflow.registry import MlflowRegistry
from pipeline.domain.errors import IntegrityBroken, Misconfigured, Unavailable
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.lineages import TrainedArtifacts, check_name
from pipeline.services.registry.registry_ports import Registry
from tests.support.fake_registry import FakeRegistry
from tests.support.registry_entries import entry, file_ref, lineage
from tests.support.sealed import registered


class Person(Protocol):
    """What somebody does in the registry's own user interface."""

    def add_version(self, lineage: str, tags: dict[str, str]) -> str: ...
    def set_alias(self, lineage: str, alias: str, version: str) -> None: ...
    def set_tag(self, lineage: str, version: str, key: str, value: str) -> None: ...
    def tags(self, lineage: str, version: str) -> dict[str, str]: ...
    def aliases(self, lineage: str) -> dict[str, str]: ...


class MlflowPerson:
    """A person with MLflow's own client."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def add_version(self, lineage: str, tags: dict[str, str]) -> str:
        run = self.client.create_run("0")
        made = self.client.create_model_version(
            lineage, f"{run.info.artifact_uri}/m", run_id=run.info.run_id, tags=tags, await_creation_for=None
        )
        return str(made.version)

    def set_alias(self, lineage: str, alias: str, version: str) -> None:
        self.client.set_registered_model_alias(lineage, alias, version)

    def set_tag(self, lineage: str, version: str, key: str, value: str) -> None:
        self.client.set_model_version_tag(lineage, version, key, value)

    def tags(self, lineage: str, version: str) -> dict[str, str]:
        return dict(self.client.get_model_version(lineage, version).tags)

    def aliases(self, lineage: str) -> dict[str, str]:
        return {k: str(v) for k, v in self.client.get_registered_model(lineage).aliases.items()}


@pytest.fixture(params=["fake", "mlflow"])
def parties(request: pytest.FixtureRequest) -> tuple[Registry, Person]:
    """A registry and somebody who uses it by hand."""
    if request.param == "fake":
        fake = FakeRegistry()
        return fake, fake
    uri = request.getfixturevalue("mlflow_uri")
    return MlflowRegistry(uri), MlflowPerson(uri)


@pytest.fixture
def registry(parties: tuple[Registry, Person]) -> Registry:
    return parties[0]


@pytest.fixture
def person(parties: tuple[Registry, Person]) -> Person:
    return parties[1]


def test_a_snapshot_is_registered_once(registry: Registry, person: Person, lineage_name: str, tmp_path: Path) -> None:
    made = entry(lineage(lineage_name), tmp_path)
    assert registered(registry, made) == registered(registry, made) == "1"
    tags = person.tags(lineage_name, "1")
    assert tags["corrigenda.snapshot_id"] == made.snapshot.snapshot_id
    assert tags["corrigenda.digest"] == made.snapshot.digest
    assert tags["corrigenda.audit_head"] == "3:" + "a" * 64


@pytest.mark.parametrize("odd", ["1.7b", "O'Brien's", 'the-"best"', "100%", "\u6771\u4eac", "a#b&c=d;e@g[h]`i"])
def test_a_lineage_of_any_name_that_may_be_made_is_registered_and_found(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path, odd: str
) -> None:
    name = f"{lineage_name}-{odd}"
    check_name(name)
    made = entry(lineage(name), tmp_path)
    assert registered(registry, made) == registered(registry, made) == "1"
    assert person.tags(name, "1")["corrigenda.digest"] == made.snapshot.digest


def test_each_snapshot_gets_its_own_version(registry: Registry, lineage_name: str, tmp_path: Path) -> None:
    made = lineage(lineage_name)
    versions = [registered(registry, entry(made, tmp_path, seq=seq)) for seq in (1, 2)]
    assert versions == ["1", "2"]


def test_the_lowest_of_several_versions_of_a_snapshot_is_canonical_and_the_others_say_so(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path
) -> None:
    made = entry(lineage(lineage_name), tmp_path)
    registered(registry, made)
    person.add_version(lineage_name, person.tags(lineage_name, "1"))
    assert registered(registry, made) == "1"
    assert person.tags(lineage_name, "2")["corrigenda.duplicate_of"] == "1"
    assert "corrigenda.duplicate_of" not in person.tags(lineage_name, "1")


def test_a_lineage_that_was_never_registered_has_no_requests_and_no_champion(
    registry: Registry, lineage_name: str
) -> None:
    assert registry.requests(lineage_name) == ()
    assert registry.champion(lineage_name) is None
    registry.point_champion(lineage_name, None)


@pytest.mark.parametrize("decision", ["approved", "rejected"])
def test_an_alias_is_a_request_until_it_is_answered(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path, decision: str
) -> None:
    made = entry(lineage(lineage_name), tmp_path)
    registered(registry, made)
    person.set_alias(lineage_name, decision, "1")
    (request,) = registry.requests(lineage_name)
    assert (request.version, request.decision, request.by_alias) == ("1", decision, True)
    assert (request.snapshot_id, request.digest) == (made.snapshot.snapshot_id, made.snapshot.digest)
    assert request.actor is None
    registry.answer(lineage_name, request, outcome=decision)
    assert registry.requests(lineage_name) == ()
    assert decision not in person.aliases(lineage_name)
    assert person.tags(lineage_name, "1")["approval.outcome"] == decision


def test_a_tag_is_a_request_with_a_claimed_name_and_a_reason(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path
) -> None:
    registered(registry, entry(lineage(lineage_name), tmp_path))
    person.set_tag(lineage_name, "1", "approval.actor", "anna")
    person.set_tag(lineage_name, "1", "approval.reason", "read the report")
    assert registry.requests(lineage_name) == ()
    person.set_tag(lineage_name, "1", "approval", "Approved ")
    (request,) = registry.requests(lineage_name)
    assert (request.decision, request.by_alias) == ("approved", False)
    assert (request.actor, request.reason) == ("anna", "read the report")
    registry.answer(lineage_name, request, outcome="refused: it is late")
    tags = person.tags(lineage_name, "1")
    assert registry.requests(lineage_name) == ()
    assert tags["approval.outcome"] == "refused: it is late"
    assert (tags["approval.asked_by"], tags["approval.because"]) == ("anna (claimed)", "read the report")
    assert tags["approval.answered_at"]
    assert not {"approval", "approval.actor", "approval.reason"} & set(tags)


def test_an_alias_of_nobody_known_is_marked_as_claimed(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path
) -> None:
    registered(registry, entry(lineage(lineage_name), tmp_path))
    person.set_alias(lineage_name, "approved", "1")
    (request,) = registry.requests(lineage_name)
    registry.answer(lineage_name, request, outcome="approved")
    assert person.tags(lineage_name, "1")["approval.asked_by"] == "unknown (claimed)"


def test_answering_twice_is_the_same_as_once(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path
) -> None:
    registered(registry, entry(lineage(lineage_name), tmp_path))
    person.set_tag(lineage_name, "1", "approval", "rejected")
    (request,) = registry.requests(lineage_name)
    for _ in range(2):
        registry.answer(lineage_name, request, outcome="rejected")
    assert person.tags(lineage_name, "1")["approval.outcome"] == "rejected"


def test_an_alias_that_moved_on_meanwhile_stays_a_request(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path
) -> None:
    made = lineage(lineage_name)
    for seq in (1, 2):
        registered(registry, entry(made, tmp_path, seq=seq))
    person.set_alias(lineage_name, "approved", "1")
    (request,) = registry.requests(lineage_name)
    person.set_alias(lineage_name, "approved", "2")
    registry.answer(lineage_name, request, outcome="approved")
    assert [asked.version for asked in registry.requests(lineage_name)] == ["2"]


def test_a_version_that_a_person_made_asks_without_a_snapshot(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path
) -> None:
    registered(registry, entry(lineage(lineage_name), tmp_path))
    version = person.add_version(lineage_name, {})
    person.set_alias(lineage_name, "approved", version)
    (request,) = registry.requests(lineage_name)
    assert (request.version, request.snapshot_id, request.digest) == (version, "", "")


def test_the_champion_moves_and_goes(registry: Registry, person: Person, lineage_name: str, tmp_path: Path) -> None:
    registered(registry, entry(lineage(lineage_name), tmp_path))
    for _ in range(2):
        registry.point_champion(lineage_name, "1")
    assert registry.champion(lineage_name) == "1" == person.aliases(lineage_name)["champion"]
    registry.point_champion(lineage_name, None)
    assert registry.champion(lineage_name) is None


def test_a_champion_that_has_no_version_is_a_clear_error(registry: Registry, lineage_name: str, tmp_path: Path) -> None:
    registered(registry, entry(lineage(lineage_name), tmp_path))
    with pytest.raises(Misconfigured):
        registry.point_champion(lineage_name, "7")


def test_a_note_is_a_tag_and_a_missing_version_is_let_be(
    registry: Registry, person: Person, lineage_name: str, tmp_path: Path
) -> None:
    registered(registry, entry(lineage(lineage_name), tmp_path))
    registry.note(lineage_name, "1", text="put back")
    registry.note(lineage_name, "7", text="put back")
    assert person.tags(lineage_name, "1")["corrigenda.note"] == "put back"


def test_a_lost_reply_leaves_one_version(lineage_name: str, tmp_path: Path) -> None:
    fake = FakeRegistry()
    fake.loses_reply = True
    made = entry(lineage(lineage_name), tmp_path)
    with pytest.raises(Unavailable):
        registered(fake, made)
    assert registered(fake, made) == "1"


class TestMlflow:
    """What only the real registry has."""

    @pytest.fixture
    def client(self, mlflow_uri: str) -> Any:
        return MlflowPerson(mlflow_uri).client

    def test_a_lost_reply_leaves_one_version(
        self, mlflow_uri: str, client: Any, lineage_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        create = MlflowClient.create_model_version

        def create_and_lose(self: Any, *args: Any, **kwargs: Any) -> None:
            create(self, *args, **kwargs)
            raise MlflowException("connection reset before the answer was read")

        made = entry(lineage(lineage_name), tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "create_model_version", create_and_lose)
            with pytest.raises(Unavailable, match="connection reset"):
                registered(MlflowRegistry(mlflow_uri), made)
        assert registered(MlflowRegistry(mlflow_uri), made) == "1"
        assert len(client.search_model_versions(f"name = '{lineage_name}'")) == 1

    def test_a_person_can_read_what_changed_and_how_to_approve(
        self, mlflow_uri: str, client: Any, lineage_name: str, tmp_path: Path
    ) -> None:
        made = entry(lineage(lineage_name), tmp_path)
        registered(MlflowRegistry(mlflow_uri, review_pages="https://ours"), made)
        version = client.get_model_version(lineage_name, "1")
        assert f"[the review page](https://ours/review/lineages/{lineage_name}/snapshots/1)" in version.description
        assert "**1. The capital of Japan is → Osaka**" in version.description
        assert "not measured: generalization" in version.description
        assert "click *Add*, type `approved`" in version.description
        assert (
            f"/runs/{version.run_id}/artifacts/plots/lineage.png?workflowType=machine_learning" in version.description
        )
        names = {file.path for file in client.list_artifacts(version.run_id)}
        assert names == {"before_after.json", "before_after.md", "gate_report.json", "plots"}
        assert [file.path for file in client.list_artifacts(version.run_id, "plots")] == ["plots/edits.png"]
        run = client.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics["edit_success"] == 1.0
        assert "retention" not in run.data.metrics
        history = client.get_metric_history(version.run_id, "perplexity")
        assert [(point.step, point.value) for point in history] == [(1, 20.0)]
        assert run.data.params["num_edits"] == "1"
        datasets = {one.dataset.name: one.dataset.digest for one in run.inputs.dataset_inputs}
        assert datasets.keys() == {"edits", "suite"}
        assert datasets["suite"] == made.lineage.settings.reference.digest[:36]

    @pytest.mark.parametrize("is_trained", [True, False])
    def test_a_version_names_the_editor_that_made_it(
        self, mlflow_uri: str, client: Any, lineage_name: str, tmp_path: Path, is_trained: bool
    ) -> None:
        of = lineage(lineage_name)
        if is_trained:
            files = TrainedArtifacts(name="mend-7", card=of.settings.prior, tensors=of.settings.prior)
            editor = replace(of.settings.editor, transform="e" * 64)
            of = replace(of, settings=replace(of.settings, editor=editor, trained=files))
        registered(MlflowRegistry(mlflow_uri), entry(of, tmp_path))
        version = client.get_model_version(lineage_name, "1")
        name, digest = ("mend-7", "e" * 64) if is_trained else ("gradient (untrained)", "")
        assert version.tags["corrigenda.editor"] == name
        assert version.tags["corrigenda.editor_digest"] == digest
        assert f"Editor: {name}" in version.description
        assert digest in version.description

    def test_another_digest_under_the_same_snapshot_is_refused(
        self, mlflow_uri: str, client: Any, lineage_name: str, tmp_path: Path
    ) -> None:
        made = entry(lineage(lineage_name), tmp_path)
        registered(MlflowRegistry(mlflow_uri), made)
        client.set_model_version_tag(lineage_name, "1", "corrigenda.digest", "f" * 64)
        with pytest.raises(IntegrityBroken):
            registered(MlflowRegistry(mlflow_uri), made)

    def test_a_delta_that_is_not_what_was_recorded_is_never_registered(
        self, mlflow_uri: str, client: Any, lineage_name: str, tmp_path: Path
    ) -> None:
        made = entry(lineage(lineage_name), tmp_path)
        Path(made.plan.deltas[0].path).write_bytes(b"other bytes")
        with pytest.raises(IntegrityBroken):
            registered(MlflowRegistry(mlflow_uri), made)
        assert client.search_model_versions(f"name = '{lineage_name}'") == []

    def test_files_that_versions_share_are_kept_once_also_after_a_broken_upload(
        self, mlflow_uri: str, client: Any, lineage_name: str, tmp_path: Path, local_stack: LocalStack
    ) -> None:
        of = lineage(lineage_name)
        versions = [entry(of, tmp_path, seq=seq).plan.deltas[0] for seq in (1, 2, 3)]
        (tmp_path / "accumulator.safetensors").write_bytes(b"shift")
        accumulator = file_ref(tmp_path / "accumulator.safetensors")
        registry = MlflowRegistry(mlflow_uri)
        registered(registry, entry(of, tmp_path, seq=2, deltas=tuple(versions[:2]), accumulator=accumulator))
        (held,) = (local_stack.root / "mlflow").rglob(f"{accumulator.digest}.safetensors")
        held.write_bytes(b"sh")
        registered(registry, entry(of, tmp_path, seq=3, deltas=tuple(versions), accumulator=accumulator))
        found = list((local_stack.root / "mlflow").rglob(f"*/files/{accumulator.digest[:16]}/*"))
        assert {path.stem for path in found} == {accumulator.digest, versions[0].digest, versions[1].digest}
        assert len(found) == 3
        assert all(sha256_file(path) == path.stem for path in found)

    def test_a_shared_file_that_is_not_what_was_recorded_is_never_uploaded(
        self, mlflow_uri: str, client: Any, lineage_name: str, tmp_path: Path
    ) -> None:
        of = lineage(lineage_name)
        deltas = tuple(entry(of, tmp_path, seq=seq).plan.deltas[0] for seq in (1, 2))
        made = entry(of, tmp_path, seq=2, deltas=deltas)
        Path(deltas[0].path).write_bytes(b"other bytes")
        with pytest.raises(IntegrityBroken, match=deltas[0].digest[:12]):
            registered(MlflowRegistry(mlflow_uri), made)
        assert client.search_model_versions(f"name = '{lineage_name}'") == []

    def test_a_hundred_edits_still_fit_into_a_description(
        self, mlflow_uri: str, client: Any, lineage_name: str, tmp_path: Path
    ) -> None:
        made = entry(lineage(lineage_name), tmp_path)
        made = replace(made, edits=made.edits * 100)
        registered(MlflowRegistry(mlflow_uri), made)
        text = client.get_model_version(lineage_name, "1").description
        assert len(text) <= 5_000
        assert "more in the artifact `before_after.md`" in text
        assert "click *Add*, type `approved`" in text

    def test_no_foreign_error_leaks_when_nobody_answers(
        self, lineage_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        registry = MlflowRegistry("http://127.0.0.1:9")
        made = entry(lineage(lineage_name), tmp_path)
        calls: list[Callable[[], object]] = [
            lambda: registered(registry, made),
            lambda: registry.requests(lineage_name),
            lambda: registry.champion(lineage_name),
            lambda: registry.point_champion(lineage_name, "1"),
            lambda: registry.note(lineage_name, "1", text="put back"),
        ]
        for call in calls:
            with pytest.raises(Unavailable):
                call()

    def test_no_foreign_error_leaks_when_the_name_is_refused(self, mlflow_uri: str, tmp_path: Path) -> None:
        with pytest.raises(Misconfigured):
            registered(MlflowRegistry(mlflow_uri), entry(lineage("with/slash"), tmp_path))
