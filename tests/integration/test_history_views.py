"""What the auditors' views say at every station of an edit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.domain.review.approvals import Decision
from pipeline.domain.snapshots import Snapshot
from tests.support.store_rig import LINEAGE, StoreRig, failing_report


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """Every store on a fresh database, with one lineage."""
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    yield rig
    rig.close()


def row(rig: StoreRig, edit_id: str) -> dict[str, Any]:
    return dict(SqlHistoryStore(rig.engine).edit(LINEAGE, edit_id))


def states(rig: StoreRig) -> dict[str, str]:
    return {row["request_id"]: row["state"] for row in SqlHistoryStore(rig.engine).edits(LINEAGE)}


def approve(rig: StoreRig, snapshot: Snapshot) -> None:
    outcome = rig.decide(snapshot, Decision.approved)
    assert outcome.is_accepted, outcome.reason


def live(rig: StoreRig) -> set[str]:
    return {row["request_id"] for row in rig.query("SELECT request_id FROM live_edits WHERE lineage = %s", LINEAGE)}


def test_an_edit_is_followed_from_the_queue_to_live(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    assert states(rig) == {"r1": "queued"}
    lease = rig.acquire()
    batch = rig.claim(lease)
    assert batch is not None
    assert states(rig) == {"r1": "editing"}
    snapshot = rig.snapshots.commit(lease, rig.new_snapshot(batch=batch))
    found = row(rig, edit_id)
    assert (found["state"], found["snapshot_seq"], found["batch_ordinal"]) == ("candidate", 1, 1)
    assert (found["gate_verdict"], found["gate_passed"], found["approved_by"]) == ("passed", True, None)
    assert found["gate_score"]["edit_success"] is True
    assert live(rig) == set()
    rig.mirror.registered(snapshot.snapshot_id, version="7")
    approve(rig, snapshot)
    found = row(rig, edit_id)
    assert (found["state"], found["registry_version"], found["approved_by"]) == ("live", "7", "cli:reviewer (claimed)")
    assert (found["approval_is_claimed"], found["is_live"], found["left_seq"]) == (True, True, None)
    assert live(rig) == {"r1"}


def test_the_lines_of_an_edit_tell_its_whole_way(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    snapshot = rig.commit_batch(rig.acquire())
    approve(rig, snapshot)
    actions = [event["action"] for event in row(rig, edit_id)["events"]]
    assert actions[0] == "edit:received"
    for action in ("edit:claimed", "edit:snapshotted", "snapshot:created", "snapshot:approved"):
        assert actions.count(action) == 1
    assert actions == [event["action"] for event in sorted(row(rig, edit_id)["events"], key=lambda e: e["seq"])]


def test_a_rejected_edit_shows_what_was_measured(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    lease = rig.acquire()
    assert rig.claim(lease) is not None
    rig.queue.reject(lease, {edit_id: "not the argmax"}, report=failing_report([edit_id]))
    found = row(rig, edit_id)
    assert (found["state"], found["reason"], found["batch_outcome"]) == ("rejected", "not the argmax", "rejected")
    assert (found["gate_verdict"], found["gate_passed"], found["snapshot_id"]) == ("failed", False, None)
    assert "the model answers" in found["gate_reason"]


def test_a_reverted_edit_is_live_until_the_removal_is_approved(rig: StoreRig) -> None:
    first, second = rig.correct("r1"), rig.correct("r2")
    lease = rig.acquire()
    approve(rig, rig.commit_batch(lease))
    rig.review.request_revert(LINEAGE, [first], actor="cli:ada", reason="wrong")
    found = row(rig, first)
    assert (found["state"], found["removal_asked_by"]) == ("live, removal pending", "cli:ada")
    without = rig.commit_removal(lease)
    found = row(rig, first)
    assert (found["state"], found["status"], found["left_seq"]) == ("live, removal pending", "reverted", 2)
    assert live(rig) == {"r1", "r2"}
    approve(rig, without)
    assert (row(rig, first)["state"], row(rig, second)["state"]) == ("gone", "live")
    assert live(rig) == {"r2"}


def test_a_corrected_fact_is_live_until_its_successor_is(rig: StoreRig) -> None:
    rig.correct("old", fact="X")
    lease = rig.acquire()
    approve(rig, rig.commit_batch(lease))
    rig.correct("new", fact="X", target="Sydney", minute=5)
    newer = rig.commit_batch(lease)
    assert states(rig) == {"old": "live, removal pending", "new": "candidate"}
    approve(rig, newer)
    assert states(rig) == {"old": "superseded", "new": "live"}
    assert row(rig, rig.edit_id("old"))["superseded_by_request_id"] == "new"


def test_approving_a_snapshot_approves_what_it_is_built_on(rig: StoreRig) -> None:
    rig.correct("r1")
    lease = rig.acquire()
    rig.commit_batch(lease)
    rig.correct("r2")
    approve(rig, rig.commit_batch(lease))
    first = row(rig, rig.edit_id("r1"))
    assert (first["state"], first["snapshot_seq"], first["approved_by"]) == ("live", 1, "cli:reviewer (claimed)")


def test_a_roll_back_shows_what_is_no_longer_live(rig: StoreRig) -> None:
    rig.correct("r1")
    lease = rig.acquire()
    first = rig.commit_batch(lease)
    approve(rig, first)
    rig.correct("r2")
    approve(rig, rig.commit_batch(lease))
    outcome = rig.decide(first, Decision.rolled_back)
    assert outcome.is_accepted, outcome.reason
    assert states(rig) == {"r1": "live", "r2": "rolled back"}
    assert live(rig) == {"r1"}


def test_the_lineage_history_has_a_row_a_snapshot(rig: StoreRig) -> None:
    rig.correct("r1", fact="X")
    rig.correct("r2")
    lease = rig.acquire()
    first = rig.commit_batch(lease)
    approve(rig, first)
    rig.correct("r3", fact="X", target="Sydney", minute=5)
    rig.commit_batch(lease)
    rows = rig.query("SELECT * FROM lineage_history WHERE lineage = %s ORDER BY seq", LINEAGE)
    counts = [(row["seq"], row["parent_seq"], row["num_active"], row["num_added"], row["num_left"]) for row in rows]
    assert counts == [(1, None, 2, 2, 0), (2, 1, 2, 1, 1)]
    assert [(row["status"], row["is_head"], row["is_champion"]) for row in rows] == [
        ("approved", False, True),
        ("candidate", True, False),
    ]
    assert [row["approved_by"] for row in rows] == ["cli:reviewer (claimed)", None]
    assert rows[0]["metrics"]["edit_success"] == 1.0
    assert rows[0]["digest"] == first.digest


def test_decisions_are_listed_with_the_refused_ones(rig: StoreRig) -> None:
    rig.correct("r1")
    snapshot = rig.commit_batch(rig.acquire())
    rig.decide(snapshot, Decision.rolled_back)
    approve(rig, snapshot)
    found = SqlHistoryStore(rig.engine).approvals(LINEAGE)
    assert [(row["decision"], row["refusal"] is None, row["snapshot_seq"]) for row in found] == [
        ("rolled_back", False, 1),
        ("approved", True, 1),
    ]
