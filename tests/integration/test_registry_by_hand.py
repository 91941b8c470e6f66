"""What people delete, rename, restore and change in MLflow, on the real server and the real database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.local import LocalStack
from pipeline.adapters.mlflow import registry as registry_adapter
from pipeline.adapters.mlflow.registry import MlflowRegistry
from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.adapters.sql.outbox import SqlOutboxStore
from pipeline.domain.errors import CorrigendaError
from pipeline.domain.review.approvals import Decision
from pipeline.domain.snapshots import Snapshot
from pipeline.services.ports import OutboxItem
from pipeline.services.registry.candidate_versions import CandidateVersions
from pipeline.services.registry.champion_alias import ChampionAlias
from pipeline.services.registry.mirroring import RegistryMirror
from pipeline.services.registry.package_checking import OF_BEFORE, PackageChecker
from pipeline.services.registry.reconciling import RegistryReconciler
from pipeline.services.registry.registry_ports import RegistryEntry
from pipeline.services.relaying import OutboxRelay
from pipeline.services.review import ReviewService
from tests.support.store_rig import LINEAGE, StoreRig


@dataclass(kw_only=True)
class Office:
    """The control plane around one lineage, and somebody with MLflow's own client."""

    rig: StoreRig
    client: Any
    registry: MlflowRegistry

    def __post_init__(self) -> None:
        rig, registry = self.rig, self.registry
        self.mirror = RegistryMirror(mirror=rig.mirror, registry=registry)
        self.alias = ChampionAlias(mirror=rig.mirror, registry=registry)
        review = ReviewService(
            lineages=rig.lineages, snapshots=rig.snapshots, review=rig.review, history=SqlHistoryStore(rig.engine)
        )
        self.reconciler = RegistryReconciler(
            lineages=rig.lineages,
            snapshots=rig.snapshots,
            registry=registry,
            champion=self.alias,
            candidates=CandidateVersions(snapshots=rig.snapshots, mirror=rig.mirror, registry=registry),
            review=review,
            notes=rig.review,
        )
        self.checker = PackageChecker(lineages=rig.lineages, snapshots=rig.snapshots, registry=registry)

    def relay(self) -> int:
        """Carry out what is owed to the registry, and nothing else; return how many items that was."""
        handlers: dict[str, Callable[[OutboxItem], Any]] = {
            "register": lambda item: self.mirror.register(item.payload["snapshot_id"]),
            "reregister": lambda item: self.rig.mirror.unregistered(**item.payload),
            "champion": lambda item: self.alias.point(item.payload["lineage"]),
        }
        handlers |= {kind: lambda _item: None for kind in ("doorbell", "result", "dead_letter")}
        self.rig.query("UPDATE outbox SET next_attempt_at = clock_timestamp() WHERE done_at IS NULL")
        relay = OutboxRelay(outbox=SqlOutboxStore(self.rig.engine), handlers=handlers)
        return sum(relay.run_once(kind) for kind in relay.kinds)

    def settle(self) -> None:
        """What happens in some seconds: three rounds, or fewer once one has found nothing to do."""
        for _ in range(3):
            try:
                is_quiet = self.reconciler.run_once() == 0
            except CorrigendaError:
                is_quiet = False
            num_relayed = self.relay()
            if is_quiet and num_relayed == 0 and not self.rig.query("SELECT kind FROM outbox WHERE done_at IS NULL"):
                return

    def lines(self, *, after: int = 0) -> list[str]:
        """Audit actions that tell of the registry, each in its place."""
        told = ("champion:", "snapshot:registered", "snapshot:unregistered", "approval:")
        events = self.rig.audit.events(LINEAGE, after_seq=after)
        return [event.action.value for event in events if event.action.value.startswith(told)]

    def champion(self) -> Snapshot:
        return self.rig.snapshots.snapshot(LINEAGE, "champion")

    def pointed(self) -> str | None:
        return self.registry.champion(LINEAGE)

    def new_candidate(self, fact: str) -> Snapshot:
        self.rig.correct(fact)
        return self.rig.commit_batch(self.rig.acquire())


def no_plots(entry: RegistryEntry, folder: Path) -> Path:
    """Draw nothing, which saves half a second a registration; `tests/contract/test_registry.py` has pictures."""
    target = folder / "plots"
    target.mkdir()
    (target / "lineage.png").write_bytes(b"no picture")
    return target


@pytest.fixture
def office(postgres_url: str, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    """A lineage whose champion is registered and live; its model in MLflow is new."""
    from mlflow import MlflowClient

    monkeypatch.setattr(registry_adapter, "write_plots", no_plots)
    client = MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)
    with suppress(Exception):
        client.delete_registered_model(LINEAGE)
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    made = Office(rig=rig, client=client, registry=MlflowRegistry(mlflow_uri))
    snapshot = made.new_candidate("a")
    made.settle()
    rig.decide(snapshot, Decision.approved)
    made.settle()
    assert made.pointed() == made.champion().registry_version == "1"
    assert made.lines() == ["snapshot:registered", "champion:moved"]
    yield made
    rig.close()


def delete_version(office: Office) -> None:
    office.client.delete_model_version(LINEAGE, "1")


def delete_model(office: Office) -> None:
    office.client.delete_registered_model(LINEAGE)


def rename_model(office: Office) -> None:
    with suppress(Exception):
        office.client.delete_registered_model(f"{LINEAGE}-renamed")
    office.client.rename_registered_model(LINEAGE, f"{LINEAGE}-renamed")


def delete_model_and_make_it_again(office: Office) -> None:
    office.client.delete_registered_model(LINEAGE)
    office.client.create_registered_model(LINEAGE)
    run = office.client.create_run("0")
    office.client.create_model_version(LINEAGE, f"{run.info.artifact_uri}/m", run_id=run.info.run_id)


def delete_logged_model(office: Office) -> None:
    source = office.client.get_model_version(LINEAGE, "1").source
    office.client.delete_logged_model(source.removeprefix("models:/"))


def delete_the_experiment_and_the_version(office: Office) -> None:
    office.client.delete_experiment(office.client.get_experiment_by_name(LINEAGE).experiment_id)
    office.client.delete_model_version(LINEAGE, "1")


def rename_the_experiment_and_delete_the_version(office: Office) -> None:
    found = office.client.get_experiment_by_name(LINEAGE).experiment_id
    office.client.rename_experiment(found, f"{LINEAGE}-{office.champion().snapshot_id}")
    office.client.delete_model_version(LINEAGE, "1")


def delete_the_runs_and_the_version(office: Office) -> None:
    found = office.client.get_experiment_by_name(LINEAGE).experiment_id
    for run in office.client.search_runs([found]):
        office.client.delete_run(run.info.run_id)
    office.client.delete_model_version(LINEAGE, "1")


def delete_the_tag_of_its_snapshot(office: Office) -> None:
    office.client.delete_model_version_tag(LINEAGE, "1", "corrigenda.snapshot_id")


def change_the_tag_of_its_files(office: Office) -> None:
    office.client.set_model_version_tag(LINEAGE, "1", "corrigenda.package_digest", "f" * 64)


@pytest.mark.parametrize(
    "act",
    [
        delete_version,
        delete_model,
        rename_model,
        delete_model_and_make_it_again,
        delete_logged_model,
        delete_the_experiment_and_the_version,
        rename_the_experiment_and_delete_the_version,
        delete_the_runs_and_the_version,
        delete_the_tag_of_its_snapshot,
        change_the_tag_of_its_files,
    ],
)
def test_a_champion_that_somebody_made_unusable_is_missing_once_and_registered_again(
    office: Office, act: Callable[[Office], None]
) -> None:
    last, _ = office.rig.audit.head(LINEAGE)
    act(office)
    office.settle()
    office.settle()
    again = office.champion()
    assert office.lines(after=last) == ["champion:missing", "snapshot:registered"]
    assert office.pointed() == again.registry_version
    assert office.registry.find(LINEAGE, str(again.registry_version)) is not None
    (found,) = office.checker.check(LINEAGE)
    assert (found.version, found.fault, found.is_bound) == (again.registry_version, None, True)


@pytest.mark.parametrize("act", [delete_version, delete_model, delete_logged_model])
def test_a_candidate_that_somebody_deleted_can_be_approved_and_is_registered_again(
    office: Office, act: Callable[[Office], None]
) -> None:
    candidate = office.new_candidate("b")
    office.settle()
    version = office.rig.snapshots.snapshot(LINEAGE, "head").registry_version
    office.client.delete_model_version(LINEAGE, version)
    last, _ = office.rig.audit.head(LINEAGE)
    office.rig.decide(candidate, Decision.approved)
    office.settle()
    assert office.lines(after=last) == ["champion:moved", "champion:missing", "snapshot:registered"]
    assert office.pointed() == office.champion().registry_version


def test_moves_by_hand_leave_a_line_each_while_a_champion_is_owed(office: Office) -> None:
    candidate = office.new_candidate("b")
    office.settle()
    last, _ = office.rig.audit.head(LINEAGE)
    office.rig.decide(candidate, Decision.approved)  # its debt is not relayed
    for _ in range(3):
        office.client.delete_registered_model_alias(LINEAGE, "champion")
        office.reconciler.run_once()
        assert office.pointed() == "2"
    assert office.lines(after=last) == ["champion:moved", *["champion:restored"] * 3]
    office.relay()
    assert office.pointed() == "2"
    assert len(office.lines(after=last)) == 4


def test_a_person_who_asks_for_it_gets_another_version(office: Office) -> None:
    last, _ = office.rig.audit.head(LINEAGE)
    champion = office.champion()
    for _ in range(2):
        office.rig.mirror.ask_again(champion.snapshot_id, version="1", actor="cli:ada", reason="its files were changed")
    office.settle()
    assert office.lines(after=last) == ["champion:missing", "snapshot:registered"]
    assert office.pointed() == "2"
    assert office.client.get_model_version(LINEAGE, "1").tags["corrigenda.duplicate_of"] == "2"
    event = office.rig.audit.events(LINEAGE, after_seq=last)[0]
    assert (event.actor, json.loads(event.payload)["reason"]) == ("cli:ada", "its files were changed")


def test_files_that_somebody_changed_are_found_by_the_auditor_and_not_approved(
    office: Office, local_stack: LocalStack
) -> None:
    office.new_candidate("b")
    office.settle()
    (good, found) = office.checker.check(LINEAGE)
    assert (good.fault, found.fault) == (None, None)
    source = office.client.get_model_version(LINEAGE, "2").source.removeprefix("models:/")
    (folder,) = (local_stack.root / "mlflow").rglob(source)
    (folder / "artifacts" / "artifacts" / "code.zip").write_bytes(b"not ours")
    (good, found) = office.checker.check(LINEAGE, every=True)
    assert good.fault is None
    assert "one of them was changed" in str(found.fault)
    office.client.set_registered_model_alias(LINEAGE, "approved", "2")
    office.settle()
    assert "one of them was changed" in office.client.get_model_version(LINEAGE, "2").tags["approval.outcome"]
    assert office.pointed() == "1"


def test_a_version_from_before_digests_were_kept_stays_and_is_said_to_be_bound_by_nothing(office: Office) -> None:
    office.rig.query("UPDATE snapshots SET package_digest = NULL")
    office.client.delete_model_version_tag(LINEAGE, "1", "corrigenda.package_digest")
    office.rig.query("DELETE FROM outbox")
    office.settle()
    assert office.mirror.register(office.champion().snapshot_id) == "1", "an item that is carried out once more"
    assert office.pointed() == "1"
    (found,) = office.checker.check(LINEAGE)
    assert (found.fault, found.is_bound) == (OF_BEFORE, False)
