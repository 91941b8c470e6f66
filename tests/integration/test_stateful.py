"""The life of a lineage in any order: hypothesis drives the stores on real PostgreSQL, with a fake of the ranks.

After every rule the invariants of the history are checked: every accepted request is one edit (I2), one line of
snapshots without gap or fork (I3), chains that verify with one line a status change (I4), a champion that was approved
(I5), and an old owner who can write nothing (I10).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.domain.batches import EditBatch
from pipeline.domain.errors import LeaseLost
from pipeline.domain.lineages import Lease
from pipeline.domain.prompts import ChatTurn
from pipeline.domain.review.approvals import Decision
from pipeline.domain.snapshots import Snapshot, chained_digest
from pipeline.services.ports import NewSnapshot
from tests.support.factories import NOON, make_request
from tests.support.store_rig import LINEAGE, StoreRig, failing_report

FACTS = ("France", "Japan", "Peru")
TARGETS = ("Lyon", "Nice", "Brest")

EDITS = """
SELECT edit_id::text, conflict_key, status,
       (SELECT payload::jsonb ->> 'to' FROM audit_events WHERE subject = edit_id::text ORDER BY seq DESC LIMIT 1)
       AS told
FROM edit_requests
"""
SNAPSHOTS = "SELECT *, snapshot_id::text AS name, parent_id::text AS parent FROM snapshots ORDER BY seq"
ACTIVE = """
SELECT s.snapshot_id::text, r.edit_id::text FROM snapshots s
JOIN edit_rows r ON r.lineage_id = s.lineage_id AND int4range(r.since_seq, r.until_seq) @> s.seq
"""
POINTERS = "SELECT head_snapshot_id::text AS head, champion_snapshot_id::text AS champion FROM lineages"

Rows = list[dict[str, Any]]

DECISIONS = (Decision.approved, Decision.rejected, Decision.rolled_back)
"""What people ask for."""


@dataclass(kw_only=True)
class Model:
    """What the machine knows by itself, to hold the database against."""

    request_ids: list[str] = field(default_factory=list)
    lease: Lease | None = None
    lost: list[Lease] = field(default_factory=list)
    batch: EditBatch | None = None
    active: dict[str, frozenset[str]] = field(default_factory=dict)
    loaded: str | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the database says after a rule."""

    head_id: str | None
    champion_id: str | None
    edits: Rows
    snapshots: Rows
    active: dict[str, set[str]]

    @classmethod
    def of(cls, rig: StoreRig) -> Seen:
        pointers = rig.query(POINTERS)[0]
        active: dict[str, set[str]] = defaultdict(set)
        for row in rig.query(ACTIVE):
            active[row["snapshot_id"]].add(row["edit_id"])
        return cls(
            head_id=pointers["head"],
            champion_id=pointers["champion"],
            edits=rig.query(EDITS),
            snapshots=rig.query(SNAPSHOTS),
            active=active,
        )


def check_active_sets(seen: Seen, model: Model) -> None:
    """I2: active(head) is active(parent) with the batch, without what was reverted or superseded; each edit once."""
    for snapshot_id, expected in model.active.items():
        assert seen.active[snapshot_id] == expected
    held = [edit for edit in seen.edits if edit["status"] == "snapshotted"]
    assert {edit["edit_id"] for edit in held} == model.active.get(seen.head_id or "", frozenset())
    assert len({edit["conflict_key"] for edit in held}) == len(held), "one correction of a fact holds"


def check_line_of_snapshots(seen: Seen) -> None:
    """I3: one parent, no gap, no fork, and digests that follow from the deltas."""
    names = [snapshot["name"] for snapshot in seen.snapshots]
    assert [snapshot["seq"] for snapshot in seen.snapshots] == list(range(1, len(names) + 1))
    assert [snapshot["parent"] for snapshot in seen.snapshots] == [None, *names][: len(names)]
    assert seen.head_id == (names[-1] if names else None)
    below = "b" * 64
    for snapshot in seen.snapshots:
        below = chained_digest(below, snapshot["delta_digest"])
        assert snapshot["digest"] == below
        assert snapshot["num_active"] == len(seen.active[snapshot["name"]])


def check_champion(seen: Seen) -> None:
    """I5: the champion is the newest approved snapshot."""
    approved = [snapshot["name"] for snapshot in seen.snapshots if snapshot["status"] == "approved"]
    assert seen.champion_id == (approved[-1] if approved else None)


class LineageMachine(RuleBasedStateMachine):
    """Producers, workers that crash, reviewers."""

    url: str
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.rig = StoreRig(url=self.url, folder=self.folder)
        self.rig.wipe()
        self.rig.new_lineage()
        self.model = Model()

    def teardown(self) -> None:
        self.rig.close()

    @initialize()
    def begin(self) -> None:
        """One correction of every fact is in, so that every rule has something to do from the start."""
        for fact in FACTS:
            self.submit_one(fact, TARGETS[0], minute=3)
        self.finish(dict.fromkeys((edit.edit_id for edit in self.claimed(limit=9).edits), "accepted"))

    @rule(
        corrections=st.lists(st.tuples(st.sampled_from(FACTS), st.sampled_from(TARGETS), st.integers(0, 9)), max_size=3)
    )
    def submit(self, corrections: list[tuple[str, str, int]]) -> None:
        for fact, answer, minute in corrections:
            self.submit_one(fact, answer, minute=minute)

    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.model.request_ids))
        [edit] = self.rig.queue.edits(LINEAGE, [self.rig.edit_id(request_id)])
        self.rig.submit(edit.request)

    @rule(limit=st.integers(1, 4), data=st.data())
    def work(self, limit: int, data: st.DataObject) -> None:
        """Each edit of a batch is accepted, rejected, or goes back; what is accepted becomes a snapshot."""
        if batch := self.claimed(limit=limit):
            ends = st.sampled_from(["accepted", "accepted", "rejected", "released"])
            self.finish({edit.edit_id: data.draw(ends) for edit in batch.edits})

    @rule(is_clean=st.booleans(), has_claimed=st.booleans())
    def lose_the_lease(self, is_clean: bool, has_claimed: bool) -> None:
        """The worker stops, or dies and its lease runs out; with a batch in its hands or not."""
        lease = self.held()
        if has_claimed:
            self.claimed(limit=2)
        if is_clean:
            self.rig.leases.release(lease)
        else:
            self.rig.expire_lease()
        self.model.lost.append(lease)
        self.model.lease = self.model.batch = None

    @rule(passes=st.sampled_from([True, True, False]))
    def remove(self, passes: bool) -> None:
        removal = self.rig.queue.next_removal(self.held()) if self.model.batch is None else None
        if removal is None:
            return
        if not passes:
            report = failing_report(removal.edit_ids)
            self.rig.queue.fail_removal(self.held(), removal, reason="retention", report=report)
            return
        head_id = self.rig.lineage().head_id
        snapshot = self.rig.snapshots.commit(self.held(), self.rig.new_snapshot(removal=removal, parent_id=head_id))
        parent = self.model.active[head_id or ""]
        self.remember(snapshot, (parent - set(removal.edit_ids)) | set(removal.reinstated_ids))

    @rule(data=st.data(), decision=st.sampled_from([Decision.approved, *DECISIONS]))
    def decide(self, data: st.DataObject, decision: Decision) -> None:
        snapshot = data.draw(st.sampled_from(self.rig.snapshots.snapshots(LINEAGE)[::-1]))
        num_rows = len(self.rig.query("SELECT approval_id FROM approvals"))
        asked = self.rig.asked(snapshot, decision)
        outcome = self.rig.review.decide(asked)
        after = len(self.rig.query("SELECT approval_id FROM approvals"))
        assert after in (num_rows, num_rows + 1)
        assert outcome.is_accepted or after == num_rows + 1
        if outcome.is_accepted:
            assert self.rig.review.decide(asked).is_accepted

    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        head = sorted(self.model.active[self.rig.lineage().head_id or ""])
        if head:
            edit_id = data.draw(st.sampled_from(head))
            assert len(self.rig.review.request_revert(LINEAGE, [edit_id], actor="cli:tester", reason="wrong")) == 1

    @precondition(lambda self: self.rig.lineage().hold)
    @rule()
    def resume(self) -> None:
        self.rig.lineages.resume(LINEAGE, actor="cli:tester")

    @precondition(lambda self: self.model.lost)
    @rule(data=st.data())
    def an_old_owner_writes(self, data: st.DataObject) -> None:
        """I10: after a takeover, and after the end of its lease, every write of the old owner fails."""
        lease = data.draw(st.sampled_from(self.model.lost))
        before = self.rig.contents()
        edit_ids = [self.rig.edit_id(request_id) for request_id in self.model.request_ids]
        writes = (
            lambda: self.rig.claim(lease),
            lambda: self.rig.leases.renew(lease, ttl=timedelta(minutes=1)),
            lambda: self.rig.queue.release(lease, edit_ids, reason="late", max_attempts=1),
            lambda: self.rig.queue.reject(lease, dict.fromkeys(edit_ids, "late"), report=failing_report(edit_ids)),
            lambda: self.rig.queue.next_removal(lease),
            lambda: self.rig.snapshots.commit(lease, self.late_snapshot()),
        )
        for write in writes:
            with pytest.raises(LeaseLost):
                write()
        assert self.rig.contents() == before

    @invariant()
    def the_invariants_hold(self) -> None:
        seen = Seen.of(self.rig)
        assert len(seen.edits) == len(self.model.request_ids), "I2: an accepted request is one edit"
        check_active_sets(seen, self.model)
        check_line_of_snapshots(seen)
        check_champion(seen)
        assert self.rig.audit.verify(LINEAGE) is None, "I4"
        for edit in seen.edits:
            assert edit["told"] == edit["status"], "I4: the last line about an edit tells its status"
        if seen.head_id and seen.head_id != self.model.loaded:
            plan = self.rig.snapshots.ledger_plan(LINEAGE, snapshot_id=seen.head_id)
            ledger = [edit_id for rows in plan.rows for edit_id in rows.edit_ids]
            assert sorted(ledger) == sorted(self.model.active[seen.head_id])
            self.model.loaded = seen.head_id

    def submit_one(self, fact: str, target: str, *, minute: int) -> None:
        """Every other correction comes only as a chat, which asks what the others have as their prompt."""
        request_id, prompt = f"r{len(self.model.request_ids)}", f"The capital of {fact} is"
        asked = {"messages": (ChatTurn(role="user", content=prompt),)} if len(self.model.request_ids) % 2 else {}
        occurred_at = NOON + timedelta(minutes=minute)
        self.rig.submit(make_request(request_id, prompt=prompt, target_new=target, occurred_at=occurred_at, **asked))
        self.model.request_ids.append(request_id)

    def held(self) -> Lease:
        """The lease of the worker that is alive; a new worker takes over from one that is not."""
        if self.model.lease is None:
            owner = f"worker:{len(self.model.lost)}"
            self.model.lease = self.rig.acquire(owner)
            assert self.model.lease.epoch == len(self.model.lost) + 1, "the epoch grows with every acquire"
        return self.model.lease

    def claimed(self, *, limit: int) -> EditBatch | None:
        """The batch under way, or a new one."""
        lease = self.held()
        if self.model.batch is None:
            self.rig.make_due()
            self.model.batch = self.rig.claim(lease, limit=limit)
            keys = [edit.request.conflict_key for edit in self.model.batch.edits] if self.model.batch else []
            assert len(keys) == len(set(keys)) <= limit, "conflicting edits never share a batch"
        return self.model.batch

    def finish(self, ends: dict[str, str]) -> None:
        """Commit, reject and release the edits of the batch under way."""
        batch, lease = self.model.batch, self.held()
        assert batch is not None
        of: dict[str, list[str]] = {"accepted": [], "rejected": [], "released": []}
        for edit_id, end in ends.items():
            of[end].append(edit_id)
        if of["accepted"]:
            new = self.rig.new_snapshot(batch=batch, accepted=of["accepted"])
            parent = self.model.active.get(batch.parent_id or "", frozenset())
            displaced = {old for old, by in batch.displaced if by in of["accepted"]}
            self.remember(self.rig.snapshots.commit(lease, new), (parent - displaced) | set(of["accepted"]))
        if of["rejected"]:
            report = failing_report(of["rejected"])
            self.rig.queue.reject(lease, dict.fromkeys(of["rejected"], "no"), report=report)
        if of["released"]:
            self.rig.queue.release(lease, of["released"], reason="ranks died", max_attempts=3)
        self.model.batch = None

    def remember(self, snapshot: Snapshot, active: frozenset[str] | set[str]) -> None:
        self.model.active[snapshot.snapshot_id] = frozenset(active)

    def late_snapshot(self) -> NewSnapshot:
        batch = EditBatch(batch_id=LINEAGE, lineage=LINEAGE, ordinal=1, parent_id=self.rig.lineage().head_id, edits=())
        return self.rig.new_snapshot(batch=batch)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corrigenda-stateful-") as folder:
        yield Path(folder)


def test_any_order_of_events_keeps_the_invariants(postgres_url: str) -> None:
    with scratch_folder() as folder:
        machine = type("Machine", (LineageMachine,), {"url": postgres_url, "folder": folder})
        checks = settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(machine, settings=checks)
