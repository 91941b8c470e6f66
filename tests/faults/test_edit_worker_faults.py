"""The edit worker as a real process that is killed at every boundary, stopped, or left behind (F8, F9, F11, F21)."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.domain.ledger.upkeep import Resolving
from pipeline.domain.review.approvals import Decision
from tests.support.edit_parts import (
    Worker,
    assert_everything_came_out,
    assert_history_holds,
    finished,
    give_work_of_every_kind,
    killed,
    work_here,
    worker,
)
from tests.support.fake_editor import BREAKS, FAILS, SATURATES
from tests.support.paths import ROOT
from tests.support.store_rig import LINEAGE, MAX_ATTEMPTS, StoreRig
from tests.support.waiting import eventually

SWEEP = (
    "edit.after_acquire",
    "edit.after_claim",
    "edit.after_claim:2",
    "edit.after_trial",
    "edit.after_trial:3",
    "edit.after_delta",
    "edit.after_delta:2",
    "edit.before_commit",
    "edit.before_commit:2",
    "edit.after_commit",
    "edit.after_commit:2",
    "edit.after_reject",
    "edit.after_removal_failed",
)
"""The first snapshot of the sweep's work is a removal's, the second a batch's."""
REMADE = tuple(name for name in SWEEP if re.search("after_delta|before_commit|after_commit", name))
"""Where rows are in a file and not in the database, or just are; first of the ledger solved anew, then of the batch."""
ELSEWHERE = {"edit.after_hold"}


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """Every store on a fresh database, without a lineage."""
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    yield rig
    rig.close()


def test_the_sweep_names_every_failpoint_of_the_edit_path() -> None:
    sources = (ROOT / "pipeline").rglob("*.py")
    named = {name for path in sources for name in re.findall(r'failpoint\("(edit\.\w+)"\)', path.read_text())}
    assert named == {armed.partition(":")[0] for armed in SWEEP} | ELSEWHERE


@pytest.mark.parametrize("failpoint", SWEEP)
def test_a_kill_at_any_boundary_changes_nothing_of_what_comes_out(rig: StoreRig, failpoint: str) -> None:
    give_work_of_every_kind(rig)
    killed(rig, failpoint)
    loaded = finished(rig)
    assert_everything_came_out(rig)
    assert_history_holds(rig)
    assert loaded["digest"] == rig.snapshots.snapshot(LINEAGE, "head").digest
    assert set(loaded["facts"]) == rig.active(rig.lineage().head_id)


@pytest.mark.parametrize("failpoint", REMADE)
def test_a_kill_while_rows_are_made_again_leaves_each_edit_with_rows_that_are_there(
    rig: StoreRig, failpoint: str
) -> None:
    """First the ledger is solved anew, which takes every edit's rows along; then facts of a subject are made again."""
    rig.new_lineage(batch_size=4)
    for name, subject in (("one", "Peru"), ("two", "peru"), ("other", None)):
        rig.correct(name, subject=subject)
    work_here(rig)
    rig.review.request_resolving(LINEAGE, Resolving(rekeys=True, prior_strength=2.0), actor="cli:tester", reason="")
    rig.correct("three", subject="Peru", minute=1)
    killed(rig, failpoint)
    loaded = finished(rig)
    assert_history_holds(rig)
    assert rig.lineage().prior_strength == 2.0
    assert loaded["digest"] == rig.snapshots.snapshot(LINEAGE, "head").digest
    created = [json.loads(event.payload) for event in rig.audit.events(LINEAGE) if event.action == "snapshot:created"]
    of_peru = sorted(rig.edit_id(name) for name in ("one", "two"))
    assert [sorted(line.get("remade", ())) for line in created] == [[], [], of_peru]
    assert ["solved_anew" in line for line in created] == [False, True, False]
    other, *_ = rig.active_since(rig.lineage().head_id)
    assert other == rig.edit_id("other"), "rows that are made again come last"


def test_a_kill_between_a_hold_and_the_release_leaves_a_held_lineage_that_a_person_can_resume(rig: StoreRig) -> None:
    rig.new_lineage(batch_size=4)
    rig.correct("good")
    rig.correct("flood", target=SATURATES, minute=1)
    killed(rig, "edit.after_hold")
    finished(rig)
    assert "saturated" in (rig.lineage().hold or "")
    assert {rig.status(rig.edit_id(name)) for name in ("good", "flood")} == {"received"}
    assert_history_holds(rig)
    rig.review.request_revert(LINEAGE, [rig.edit_id("flood")], actor="cli:tester", reason="too much")
    rig.lineages.resume(LINEAGE, actor="cli:tester")
    finished(rig)
    assert (rig.status(rig.edit_id("good")), rig.lineage().hold) == ("snapshotted", None)
    assert_history_holds(rig)


def test_an_edit_that_kills_every_worker_is_dead_and_the_next_worker_goes_on(rig: StoreRig) -> None:
    rig.new_lineage(batch_size=1)
    edit_id = rig.correct("killer", minute=1)
    for _ in range(MAX_ATTEMPTS):
        killed(rig, "edit.after_claim")
    rig.correct("next", minute=2)
    finished(rig)
    assert (rig.status(edit_id), rig.status(rig.edit_id("next"))) == ("dead", "snapshotted")
    assert rig.actions(edit_id)[-1] == "edit:died"
    assert [debt["status"] for debt in rig.debts("result") if debt["edit_id"] == edit_id] == ["dead"]
    assert_history_holds(rig)


def test_dead_ranks_cost_a_batch_no_attempt_and_an_editor_that_fails_costs_only_its_edit(rig: StoreRig) -> None:
    rig.new_lineage()
    good, broken = rig.correct("good", minute=1), rig.correct("broken", target=BREAKS, minute=2)
    loaded = finished(rig, "--engine-failures", "1")
    assert (rig.status(good), rig.status(broken)) == ("snapshotted", "rejected")
    assert "NaN" in rig.edit(broken)["reason"]
    released = [event for event in rig.audit.events(LINEAGE) if event.action == "edit:released"]
    assert ["EngineFailed" in event.payload for event in released] == [True, True]
    assert {row["attempts"] for row in rig.query("SELECT attempts FROM edit_requests")} == {0}
    assert loaded["facts"] == {good: "Canberra"}
    assert_history_holds(rig)


def test_ranks_that_die_with_every_batch_leave_one_dead_edit_and_a_held_lineage_for_a_person(rig: StoreRig) -> None:
    rig.new_lineage()
    edit_ids = [rig.correct(name, minute=minute) for minute, name in enumerate(("a", "b"))]
    finished(rig, "--engine-failures", "99")
    assert [rig.status(edit_id) for edit_id in edit_ids] == ["dead", "received"]
    assert "the ranks fail with every edit" in (rig.lineage().hold or "")
    assert rig.actions(edit_ids[0]).count("edit:released") == MAX_ATTEMPTS
    assert_history_holds(rig)


def test_a_stop_in_the_middle_of_a_batch_gives_the_lease_back_and_loses_nothing(rig: StoreRig, tmp_path: Path) -> None:
    rig.new_lineage()
    edit_id = rig.correct("only")
    with worker(rig, "--pause", str(tmp_path)) as stopped:
        eventually((tmp_path / "reached").exists, "the first candidate")
        stopped.process.send_signal(signal.SIGTERM)
        assert stopped.status() == 128 + signal.SIGTERM, stopped.said()
    assert rig.leases.waiting() == (LINEAGE,), "the reaper rings for it at once, without waiting for the lease"
    finished(rig)
    assert rig.actions(edit_id) == [
        "edit:received",
        "edit:claimed",
        "edit:released",
        "edit:claimed",
        "edit:snapshotted",
    ]
    assert rig.edit(edit_id)["attempts"] == 0
    assert_history_holds(rig)


LATE_WRITES = pytest.mark.parametrize(
    ("end", "target", "options"),
    [("snapshotted", "Canberra", ()), ("rejected", FAILS, ()), ("snapshotted", "Canberra", ("--engine-failures", "1"))],
    ids=["commit", "reject", "release"],
)
"""What a worker that slept does next, and how its edit ends without it."""


@LATE_WRITES
def test_a_worker_that_slept_through_a_takeover_writes_nothing(
    rig: StoreRig, tmp_path: Path, end: str, target: str, options: tuple[str, ...]
) -> None:
    rig.new_lineage()
    edit_id = rig.correct("only", target=target)
    with asleep(rig, tmp_path, *options) as sleeper:
        loaded = finished(rig)
        before = rig.contents()
        wake(sleeper, tmp_path)
        assert sleeper.loaded() == loaded
    after = rig.contents()
    assert {name for name in after if after[name] != before[name]} <= {"leases"}, "it may only ask for work again"
    assert sleeper.errors() == ["LeaseLost"]
    assert rig.status(edit_id) == end
    assert_history_holds(rig)


@LATE_WRITES
def test_a_worker_that_slept_writes_nothing_while_another_is_at_its_edits(
    rig: StoreRig, tmp_path: Path, end: str, target: str, options: tuple[str, ...]
) -> None:
    rig.new_lineage()
    edit_id = rig.correct("only", target=target)
    busy = tmp_path / "busy"
    busy.mkdir()
    with asleep(rig, tmp_path, *options) as sleeper, worker(rig, "--pause", str(busy)) as successor:
        eventually((busy / "reached").exists, "the successor's first candidate")
        before = rig.contents()
        wake(sleeper, tmp_path)
        eventually(lambda: sleeper.errors() == ["LeaseLost"], f"its loss; {sleeper.said()}")
        assert rig.contents() == before
        (busy / "go").touch()
        assert successor.loaded() == sleeper.loaded()
    assert (successor.errors(), sleeper.errors()) == ([], ["LeaseLost"])
    assert rig.status(edit_id) == end
    assert_history_holds(rig)


@contextmanager
def asleep(rig: StoreRig, folder: Path, *options: str) -> Iterator[Worker]:
    """A worker that sleeps in the middle of a batch, and whose lease has run out."""
    with worker(rig, "--pause", str(folder), *options) as sleeper:
        eventually((folder / "reached").exists, "the first candidate")
        sleeper.process.send_signal(signal.SIGSTOP)
        rig.expire_lease()
        yield sleeper


def wake(sleeper: Worker, folder: Path) -> None:
    (folder / "go").touch()
    sleeper.process.send_signal(signal.SIGCONT)


def test_a_hundred_doorbells_at_two_workers_are_as_good_as_one(rig: StoreRig) -> None:
    give_work_of_every_kind(rig)
    with worker(rig, "--rings", "50") as one, worker(rig, "--rings", "50") as other:
        assert one.loaded() == other.loaded()
    assert (one.errors(), other.errors()) == ([], []), "a doorbell that finds nothing is no error"
    assert_everything_came_out(rig)
    assert_history_holds(rig)


@pytest.mark.parametrize("failpoint", ["register.before", "register.after", "register.after:2", "champion.after"])
def test_a_kill_beside_the_registry_leaves_one_version_a_snapshot(
    rig: StoreRig, tmp_path: Path, failpoint: str
) -> None:
    rig.new_lineage()
    for request_id in ("a", "b"):
        rig.correct(request_id)
        work_here(rig)
    head = rig.snapshots.snapshot(LINEAGE, "head")
    assert rig.decide(head, Decision.approved).is_accepted
    registry = tmp_path / "registry.json"
    killed(rig, failpoint, "--registry", str(registry))
    rig.query("UPDATE outbox SET next_attempt_at = clock_timestamp() WHERE done_at IS NULL")
    with worker(rig, "--registry", str(registry)) as relay:
        assert relay.status() == 0, relay.said()
    model = json.loads(registry.read_text())[LINEAGE]
    snapshots = rig.snapshots.snapshots(LINEAGE)
    digests = {version: tags["corrigenda.digest"] for version, tags in model["tags"].items()}
    assert digests == {snapshot.registry_version: snapshot.digest for snapshot in snapshots}
    assert model["aliases"] == {"champion": snapshots[-1].registry_version}
    assert [rig.actions(snapshot.snapshot_id).count("snapshot:registered") for snapshot in snapshots] == [1, 1]
    assert not rig.query("SELECT 1 FROM outbox WHERE done_at IS NULL")
    assert rig.audit.verify(LINEAGE) is None
