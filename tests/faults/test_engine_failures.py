"""What ranks that fail do to edits: a culprit is found in O(log n) batches, and nobody else dies of it (F10)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.domain.batches import most_trials
from pipeline.domain.errors import (
    EngineFailed,
    IntegrityBroken,
    InvalidInput,
    Misconfigured,
    Unavailable,
    UnknownRecord,
    WrongBase,
)
from pipeline.domain.gates import GatePolicy, GateReport
from pipeline.domain.judging import judge
from pipeline.domain.lineages import Lease
from pipeline.domain.measurements import Measurements
from pipeline.domain.rank_api import Candidate, CandidateOutcome, EditorSettings, Loaded, LoadPlan
from pipeline.domain.snapshots import Snapshot
from pipeline.services import editing
from pipeline.services.editing import EditPolicy, EditService
from pipeline.services.ports import NewSnapshot
from tests.support.edit_parts import assert_history_holds
from tests.support.fake_editor import FAILS, SATURATES, FakeEditorGroup
from tests.support.store_rig import LINEAGE, MAX_ATTEMPTS, TTL, StoreRig

KILLS = "kills the ranks"
"""No trial with an edit to this target comes to an end."""
MOST_ROUNDS = 200

FAILURES: dict[str, Callable[[], Exception]] = {
    "a killed rank": lambda: EngineFailed("expected living ranks, got: rank 1 (pid 7) ended with status -9"),
    "a time-out": lambda: EngineFailed("expected an answer to try_edits within 600 s, got none"),
    "an index error in a forward": lambda: EngineFailed("IndexError: index out of range in self"),
    "an error of this process": lambda: IndexError("index out of range in self"),
    "no memory in this process": MemoryError,
    "an input that the ranks refuse": lambda: InvalidInput("expected a prompt of at most 64 tokens, got 65"),
    "an edit without rows": lambda: UnknownRecord("expected rows of an edit, got none"),
    "words that no database takes": lambda: EngineFailed("RuntimeError: \x00\ud800 of \x1b[31m" + "x" * 9999),
}


class Group(FakeEditorGroup):
    """Ranks that fail with some edits, with too many, or with whatever they are asked.

    Args:
        fail: makes what they fail with.
        most: edits that fit into their memory.
    """

    def __init__(self, fail: Callable[[], BaseException] = FAILURES["a killed rank"], *, most: int = 1000) -> None:
        super().__init__()
        self.fail, self.most = fail, most
        self.trials: list[tuple[str, ...]] = []
        self.broken_trials = self.broken_loads = 0

    def resume(self, lineage: str, *, snapshot_id: str | None, editor: EditorSettings, epoch: int) -> Loaded | None:
        if self.broken_loads:
            return None
        return super().resume(lineage, snapshot_id=snapshot_id, editor=editor, epoch=epoch)

    def load(self, plan: LoadPlan, *, epoch: int) -> Loaded:
        if self.broken_loads:
            self.broken_loads -= 1
            raise self.fail()
        return super().load(plan, epoch=epoch)

    def try_edits(self, candidate: Candidate) -> CandidateOutcome:
        self.trials.append(tuple(edit.request.request_id for edit in candidate.added))
        if self.broken_trials:
            self.broken_trials -= 1
            raise self.fail()
        if len(candidate.added) > self.most or KILLS in [edit.request.target_new for edit in candidate.added]:
            raise self.fail()
        return super().try_edits(candidate)


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """Every store on a fresh database, with one lineage."""
    made = StoreRig(url=postgres_url, folder=tmp_path)
    made.new_lineage()
    yield made
    made.close()


def ring(rig: StoreRig, group: Group) -> Exception | None:
    """One doorbell, after all waits are over; what it ended with."""
    rig.make_due()
    service = EditService(
        leases=rig.leases,
        lineages=rig.lineages,
        queue=rig.queue,
        snapshots=rig.snapshots,
        artifacts=rig.artifacts,
        group=group,
        policy=EditPolicy(owner="worker:a", lease_ttl=TTL, batch_max_wait=timedelta(), max_attempts=MAX_ATTEMPTS),
    )
    try:
        service.run(LINEAGE)
    except Exception as error:
        return error
    return None


def until_settled(rig: StoreRig, group: Group) -> None:
    """Doorbells until nothing is left to do without a person."""
    last = None
    for _ in range(MOST_ROUNDS):
        last = ring(rig, group) or last
        if not rig.leases.waiting() and not rig.query("SELECT 1 FROM edit_requests WHERE status = 'received'"):
            return
        if rig.lineage().hold is not None:
            return
    raise AssertionError(f"expected a settled lineage, got {rig.lineages.counts(LINEAGE)}") from last


def submit(rig: StoreRig, num_edits: int, culprits: Sequence[int] = (), target: str = KILLS) -> list[str]:
    """Corrections of which some are to blame; returns the edit ids in the order of claims."""
    return [
        rig.correct(f"r{place}", target=target if place in culprits else "Canberra", minute=place)
        for place in range(num_edits)
    ]


def statuses(rig: StoreRig, edit_ids: Sequence[str]) -> list[str]:
    return [rig.status(edit_id) for edit_id in edit_ids]


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_an_edit_that_the_ranks_fail_with_dies_alone_and_says_why(
    rig: StoreRig, failure: Callable[[], Exception]
) -> None:
    edit_ids = submit(rig, 5, culprits=[4])
    until_settled(rig, Group(failure))
    assert statuses(rig, edit_ids) == ["snapshotted"] * 4 + ["dead"]
    assert rig.edit(edit_ids[4])["reason"].startswith(type(failure()).__name__)
    assert {row["attempts"] for row in rig.query("SELECT attempts FROM edit_requests WHERE status <> 'dead'")} == {0}
    assert rig.edit(edit_ids[4])["attempts"] == MAX_ATTEMPTS
    assert_history_holds(rig)


@pytest.mark.parametrize("place", [0, 13, 31])
def test_one_culprit_of_a_full_batch_costs_o_log_n_batches(rig: StoreRig, place: int) -> None:
    edit_ids = submit(rig, 32, culprits=[place])
    group = Group()
    until_settled(rig, group)
    assert [edit_id for edit_id in edit_ids if rig.status(edit_id) != "snapshotted"] == [edit_ids[place]]
    assert rig.status(edit_ids[place]) == "dead"
    assert len(group.trials) <= most_trials(32) + MAX_ATTEMPTS - 1


@pytest.mark.parametrize("culprits", [[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 4, 6], [0, 7]], ids=str)
def test_of_several_culprits_every_one_dies_and_nobody_else(rig: StoreRig, culprits: list[int]) -> None:
    edit_ids = submit(rig, 8, culprits=culprits)
    until_settled(rig, Group())
    expected = ["dead" if place in culprits else "snapshotted" for place in range(8)]
    assert (statuses(rig, edit_ids), rig.lineage().hold) == (expected, None)
    assert_history_holds(rig)


def test_edits_that_come_while_a_culprit_is_looked_for_are_edited_without_it(rig: StoreRig) -> None:
    submit(rig, 4, culprits=[0])
    group = Group()
    assert isinstance(ring(rig, group), EngineFailed)
    fresh = rig.correct("fresh", minute=60)
    until_settled(rig, group)
    assert rig.status(fresh) == "snapshotted"
    assert not [trial for trial in group.trials if "fresh" in trial and "r0" in trial]
    assert rig.actions(fresh).count("edit:claimed") == 1


@pytest.mark.parametrize("most", [1, 3, 7])
def test_batches_that_do_not_fit_into_memory_are_edited_in_smaller_ones(rig: StoreRig, most: int) -> None:
    edit_ids = submit(rig, 16)
    group = Group(most=most)
    until_settled(rig, group)
    assert set(statuses(rig, edit_ids)) == {"snapshotted"}
    assert {row["attempts"] for row in rig.query("SELECT attempts FROM edit_requests")} == {0}


def test_a_failure_in_the_middle_of_a_bisection_blames_only_what_was_on_trial(rig: StoreRig) -> None:
    """The gate blames r1 first; the rest kills the ranks, and of that only r3."""
    edit_ids = submit(rig, 6, culprits=[3])
    rig.query("UPDATE edit_requests SET target_new = %s WHERE request_id = 'r1'", FAILS)
    until_settled(rig, Group())
    expected = ["snapshotted", "rejected", "snapshotted", "dead", "snapshotted", "snapshotted"]
    assert statuses(rig, edit_ids) == expected
    assert_history_holds(rig)


def test_what_a_gate_refuses_is_tried_again_alone_and_not_with_all_that_passed(rig: StoreRig) -> None:
    edit_ids = submit(rig, 8, culprits=[2, 5], target=FAILS)
    group = Group()
    until_settled(rig, group)
    assert list(map(len, group.trials)) == [8, 6, 1, 1]
    assert statuses(rig, edit_ids) == ["rejected" if place in (2, 5) else "snapshotted" for place in range(8)]
    assert {row["attempts"] for row in rig.query("SELECT attempts FROM edit_requests")} == {0}
    outcomes = "SELECT outcome FROM batch_edits JOIN edit_batches USING (batch_id) WHERE edit_id = %s ORDER BY ordinal"
    assert [row["outcome"] for row in rig.query(outcomes, edit_ids[2])] == ["suspected", "rejected"]
    assert_history_holds(rig)


def test_corrections_that_come_meanwhile_are_not_tried_with_those_that_a_gate_suspects(rig: StoreRig) -> None:
    submit(rig, 6, culprits=[0, 1, 2], target=FAILS)
    group = Group()
    with pytest.MonkeyPatch.context() as early:
        commit = rig.snapshots.commit

        def committed(lease: Lease, new: NewSnapshot) -> Snapshot:
            if not rig.query("SELECT 1 FROM edit_requests WHERE request_id = 'fresh'"):
                rig.correct("fresh", minute=60)
            return commit(lease, new)

        early.setattr(rig.snapshots, "commit", committed)
        until_settled(rig, group)
    assert [trial for trial in group.trials if "fresh" in trial] == [("fresh",)]
    assert_history_holds(rig)


def test_a_worker_that_is_killed_between_a_snapshot_and_its_suspects_loses_neither(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_ids = submit(rig, 4, culprits=[1], target=FAILS)
    with monkeypatch.context() as killed:
        killed.setattr(rig.queue, "release", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr(rig.leases, "release", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            ring(rig, Group())
    assert statuses(rig, edit_ids) == ["snapshotted", "claimed", "snapshotted", "snapshotted"]
    rig.expire_lease()
    until_settled(rig, Group())
    assert statuses(rig, edit_ids) == ["snapshotted", "rejected", "snapshotted", "snapshotted"]
    assert_history_holds(rig)


def test_ranks_that_fail_after_a_gate_suspected_some_still_hold_the_lineage(rig: StoreRig) -> None:
    """That others of the suspects' batch got in says nothing of ranks that failed later."""
    submit(rig, 8, culprits=[0, 1, 2, 3], target=FAILS)
    group = Group()
    judged = group.try_edits

    def until_first(candidate: Candidate) -> CandidateOutcome:
        if rig.lineage().head_id is not None:
            raise EngineFailed("expected living ranks, got none")
        return judged(candidate)

    group.try_edits = until_first  # type: ignore[method-assign]
    until_settled(rig, group)
    assert [row["n"] for row in rig.query("SELECT count(*) AS n FROM edit_requests WHERE status = 'dead'")] == [1]
    assert "the ranks fail with every edit" in (rig.lineage().hold or "")


def test_saturation_and_resume_cost_no_attempt_and_no_wait(rig: StoreRig) -> None:
    edit_ids = submit(rig, 3, culprits=[2], target=SATURATES)
    for _ in range(2 * MAX_ATTEMPTS):
        until_settled(rig, Group())
        assert "saturated" in (rig.lineage().hold or "")
        assert {rig.edit(edit_id)["attempts"] for edit_id in edit_ids} == {0}
        assert {rig.edit(edit_id)["next_attempt_at"] < rig.now() for edit_id in edit_ids} == {True}
        rig.lineages.resume(LINEAGE, actor="cli:tester")
    rig.review.request_revert(LINEAGE, edit_ids[2:], actor="cli:tester", reason="too much")
    until_settled(rig, Group())
    assert statuses(rig, edit_ids) == ["snapshotted", "snapshotted", "reverted"]


def test_a_worker_that_is_stopped_again_and_again_costs_its_edits_nothing(rig: StoreRig) -> None:
    edit_ids = submit(rig, 2)
    for _ in range(2 * MAX_ATTEMPTS):
        group = Group(lambda: SystemExit(143))
        group.broken_trials = 1
        with pytest.raises(SystemExit):
            ring(rig, group)
    until_settled(rig, Group())
    assert set(statuses(rig, edit_ids)) == {"snapshotted"}
    assert {row["attempts"] for row in rig.query("SELECT attempts FROM edit_requests")} == {0}


WORLD: dict[str, Exception] = {
    "no ranks": EngineFailed("expected the ranks to start, got: ImportError: libcudart.so"),
    "another base": WrongBase("expected base digest a, got b"),
    "a wrong setting": Misconfigured("expected at most a rank for each of 1 devices, got 2 ranks"),
    "a broken file": IntegrityBroken("expected digest a, got b"),
    "a full disk": OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("failure", WORLD.values(), ids=WORLD)
def test_a_snapshot_that_cannot_be_loaded_dooms_nobody_and_every_edit_says_what_is_wrong(
    rig: StoreRig, failure: Exception
) -> None:
    edit_ids = submit(rig, 3)
    group = Group(lambda: failure)
    group.broken_loads = 3 * MAX_ATTEMPTS
    waits = []
    for _ in range(3 * MAX_ATTEMPTS):
        assert ring(rig, group) is failure
        edit = rig.edit(edit_ids[0])
        assert (edit["status"], edit["attempts"]) == ("received", 0)
        assert str(failure) in edit["reason"]
        waits.append(edit["next_attempt_at"] - rig.now())
    assert all(short < long for short, long in pairwise(waits))
    assert waits[-1] <= timedelta(minutes=5)
    until_settled(rig, group)
    assert set(statuses(rig, edit_ids)) == {"snapshotted"}
    assert_history_holds(rig)


@pytest.mark.parametrize("failure", [Unavailable("no database"), Misconfigured("no prior")], ids=str)
def test_a_trial_that_fails_for_the_world_around_it_blames_no_edit(rig: StoreRig, failure: Exception) -> None:
    [edit_id] = submit(rig, 1)
    group = Group(lambda: failure)
    group.broken_trials = 2 * MAX_ATTEMPTS
    until_settled(rig, group)
    assert (rig.status(edit_id), rig.edit(edit_id)["attempts"]) == ("snapshotted", 0)


def test_ranks_that_fail_with_every_edit_doom_one_at_most_and_then_hold_the_lineage(rig: StoreRig) -> None:
    edit_ids = submit(rig, 8)
    group = Group()
    group.broken_trials = 1_000_000
    until_settled(rig, group)
    assert sorted(statuses(rig, edit_ids)) == ["dead"] + ["received"] * 7
    assert "the ranks fail with every edit" in (rig.lineage().hold or "")
    assert "ended with status -9" in (rig.lineage().hold or "")
    assert_history_holds(rig)
    group.broken_trials = 0
    rig.lineages.resume(LINEAGE, actor="cli:tester")
    until_settled(rig, group)
    assert sorted(statuses(rig, edit_ids)) == ["dead"] + ["snapshotted"] * 7


@pytest.mark.parametrize("num_failures", [1, 5, 12])
def test_ranks_that_fail_for_a_while_doom_nobody(rig: StoreRig, num_failures: int) -> None:
    edit_ids = submit(rig, 16)
    group = Group()
    group.broken_trials = num_failures
    until_settled(rig, group)
    assert set(statuses(rig, edit_ids)) == {"snapshotted"}


@pytest.mark.parametrize("step", ["judge", "commit", "reject"])
def test_an_edit_that_fails_behind_its_trial_dies_alone(
    rig: StoreRig, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_ids = submit(rig, 6, culprits=[2] if step == "reject" else [], target=FAILS)
    culprit = edit_ids[2]
    judged, commit, reject = judge, rig.snapshots.commit, rig.queue.reject

    def failing_judge(policy: GatePolicy, found: Measurements, **more: Any) -> GateReport:
        assert culprit not in [score.edit_id for score in found.edits], "a figure that nobody thought of"
        return judged(policy, found, **more)

    def failing_commit(lease: Lease, new: NewSnapshot) -> Snapshot:
        if new.batch and culprit in [edit.edit_id for edit in new.batch.edits]:
            raise InvalidInput("expected a value that PostgreSQL can hold, got one it cannot")
        return commit(lease, new)

    def failing_reject(lease: Lease, reasons: Mapping[str, str], *, report: GateReport) -> None:
        if culprit in reasons:
            raise InvalidInput("expected a value that PostgreSQL can hold, got one it cannot")
        reject(lease, reasons, report=report)

    if step == "judge":
        monkeypatch.setattr(editing, "judge", failing_judge)
    elif step == "commit":
        monkeypatch.setattr(rig.snapshots, "commit", failing_commit)
    else:
        monkeypatch.setattr(rig.queue, "reject", failing_reject)
    until_settled(rig, Group())
    assert [rig.status(edit_id) for edit_id in edit_ids if edit_id != culprit] == ["snapshotted"] * 5
    assert rig.status(culprit) == "dead"
    assert_history_holds(rig)


def test_a_disk_that_is_full_dooms_nobody(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_ids = submit(rig, 3)
    with monkeypatch.context() as full:
        full.setattr(rig.artifacts, "put", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for _ in range(2 * MAX_ATTEMPTS):
            assert isinstance(ring(rig, Group()), OSError)
    assert {rig.edit(edit_id)["attempts"] for edit_id in edit_ids} == {0}
    until_settled(rig, Group())
    assert set(statuses(rig, edit_ids)) == {"snapshotted"}


@pytest.mark.parametrize("failure", WORLD.values(), ids=WORLD)
def test_a_removal_that_the_world_hinders_stays_owed(rig: StoreRig, failure: Exception) -> None:
    [edit_id] = submit(rig, 1)
    until_settled(rig, Group())
    rig.review.request_revert(LINEAGE, [edit_id], actor="cli:tester", reason="wrong")
    group = Group(lambda: failure)
    group.broken_loads = 20
    for _ in range(20):
        assert ring(rig, group) is failure
    assert str(failure) in rig.query("SELECT outcome FROM removals")[0]["outcome"]
    ring(rig, group)
    assert rig.status(edit_id) == "reverted"
    assert_history_holds(rig)


def test_a_removal_that_the_ranks_fail_with_fails_and_says_why(rig: StoreRig) -> None:
    [edit_id] = submit(rig, 1)
    until_settled(rig, Group())
    rig.review.request_revert(LINEAGE, [edit_id], actor="cli:tester", reason="wrong")
    group = Group()
    group.broken_trials = 1_000_000
    for _ in range(10):
        ring(rig, group)
    [removal] = rig.query("SELECT status, outcome FROM removals")
    assert removal["status"] == "failed"
    assert "5 attempts" in removal["outcome"]
    assert "ended with status -9" in removal["outcome"]
    assert rig.status(edit_id) == "snapshotted"
    assert_history_holds(rig)


def test_many_offenders_that_no_bound_of_trials_decides_leave_the_innocent_alive(rig: StoreRig) -> None:
    """Half of the batch fails its gate, and no report says which half."""
    choice = random.Random(0)  # noqa: S311
    culprits = sorted(choice.sample(range(32), 16))
    edit_ids = submit(rig, 32, culprits=culprits, target=FAILS)
    until_settled(rig, Group())
    expected = ["rejected" if place in culprits else "snapshotted" for place in range(32)]
    assert statuses(rig, edit_ids) == expected
    assert {row["attempts"] for row in rig.query("SELECT attempts FROM edit_requests")} == {0}


@pytest.mark.parametrize("num_edits", [1, 2, 9])
def test_workers_that_die_over_a_batch_come_down_to_one_edit_which_dies(rig: StoreRig, num_edits: int) -> None:
    """The worker itself is killed, so nobody is left to say over which trial."""
    edit_ids = submit(rig, num_edits, culprits=[0])
    rig.query("UPDATE edit_requests SET target_new = 'Canberra'")
    for number in range(MOST_ROUNDS):
        lease = rig.acquire(f"worker:{number}")
        rig.make_due()
        batch = rig.claim(lease)
        if batch is None:
            break
        if edit_ids[0] in [edit.edit_id for edit in batch.edits]:
            rig.expire_lease()
        else:
            rig.snapshots.commit(lease, rig.new_snapshot(batch=batch))
            rig.leases.release(lease)
    assert statuses(rig, edit_ids) == ["dead"] + ["snapshotted"] * (num_edits - 1)
    assert number <= most_trials(num_edits) + MAX_ATTEMPTS


def test_batches_noted_by_an_earlier_version_are_tried_as_they_were(rig: StoreRig) -> None:
    """What came back before was noted as released, whatever the reason; nothing is known of its companions."""
    edit_ids = submit(rig, 6)
    lease = rig.acquire()
    rig.claim(lease)
    rig.queue.release(lease, edit_ids, reason="EngineFailed: died", max_attempts=9)
    rig.query("UPDATE batch_edits SET outcome = 'released'")
    rig.make_due()
    batch = rig.claim(lease)
    assert batch is not None
    assert len(batch.edits) == 6
