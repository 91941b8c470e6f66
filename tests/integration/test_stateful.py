"""The life of a lineage in any order: hypothesis drives the stores on real PostgreSQL, with a fake of the ranks.

After every rule the invariants of the history are checked: every accepted request is one edit (I2), one line of
snapshots without gap or fork (I3), chains that verify with one line a status change (I4), a champion that was approved
(I5), and an old owner who can write nothing (I10).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

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

from pipeline.domain.approvals import Decision
from pipeline.domain.batches import EditBatch
from pipeline.domain.errors import LeaseLost
from pipeline.domain.lineages import Lease
from pipeline.domain.snapshots import Snapshot, snapshot_digest
from pipeline.services.ports import NewSnapshot
from tests.factories import make_request
from tests.store_rig import LINEAGE, StoreRig, failing_report

FACTS = ("France", "Japan", "Peru")
TARGETS = ("Lyon", "Nice", "Brest")

STATUS_LINES = """
SELECT e.edit_id::text AS subject, e.status,
       (SELECT payload::jsonb ->> 'to' FROM audit_events WHERE subject = e.edit_id::text ORDER BY seq DESC LIMIT 1)
       AS told
FROM edit_requests e
"""


@dataclass(kw_only=True)
class Model:
    """What the machine knows by itself, to hold the database against."""

    num_submitted: int = 0
    request_ids: list[str] = field(default_factory=list)
    lease: Lease | None = None
    lost: list[Lease] = field(default_factory=list)
    batch: EditBatch | None = None
    num_owners: int = 0
    active: dict[str, frozenset[str]] = field(default_factory=dict)
    highest_epoch: int = 0


class LineageMachine(RuleBasedStateMachine):
    """Producers, workers that crash, reviewers."""

    url: str
    folder: Path

    @initialize()
    def begin(self) -> None:
        """A lineage of its own in a fresh database would take a second; rows of the run before are cut instead."""
        self.rig = StoreRig(url=self.url, folder=self.folder)
        self.rig.wipe()
        self.rig.new_lineage()
        self.model = Model()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.close()

    @rule(fact=st.sampled_from(FACTS), answer=st.sampled_from(TARGETS), minute=st.integers(0, 9))
    def submit(self, fact: str, answer: str, minute: int) -> None:
        request_id = f"r{self.model.num_submitted}"
        self.rig.correct(request_id, fact=fact, target=answer, minute=minute)
        self.model.num_submitted += 1
        self.model.request_ids.append(request_id)

    @precondition(lambda self: self.model.request_ids)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.model.request_ids))
        row = self.rig.edit(self.rig.edit_id(request_id))
        occurred_at, prompt = row["occurred_at"], row["prompt"]
        self.rig.submit(make_request(request_id, prompt=prompt, target_new=row["target_new"], occurred_at=occurred_at))

    @precondition(lambda self: self.model.lease is None)
    @rule()
    def acquire(self) -> None:
        self.model.num_owners += 1
        self.model.lease = self.rig.acquire(f"worker:{self.model.num_owners}")
        assert self.model.lease.epoch > self.model.highest_epoch
        self.model.highest_epoch = self.model.lease.epoch
        self.model.batch = None

    @precondition(lambda self: self.model.lease is not None)
    @rule(is_clean=st.booleans())
    def lose_the_lease(self, is_clean: bool) -> None:
        """The worker stops, or dies and its lease runs out."""
        assert self.model.lease is not None
        if is_clean:
            self.rig.leases.release(self.model.lease)
        else:
            self.rig.expire_lease()
        self.model.lost.append(self.model.lease)
        self.model.lease = None

    @precondition(lambda self: self.model.lease is not None and self.model.batch is None)
    @rule(limit=st.integers(1, 3))
    def claim(self, limit: int) -> None:
        assert self.model.lease is not None
        self.rig.make_due()
        self.model.batch = self.rig.claim(self.model.lease, limit=limit)
        keys = [edit.request.conflict_key for edit in self.model.batch.edits] if self.model.batch else []
        assert len(keys) == len(set(keys)) <= limit, "conflicting edits never share a batch"

    @precondition(lambda self: self.model.lease is not None and self.model.batch is not None)
    @rule(data=st.data())
    def finish_the_batch(self, data: st.DataObject) -> None:
        """Each edit is accepted, rejected, or goes back; what is accepted becomes a snapshot."""
        assert self.model.lease is not None
        assert self.model.batch is not None
        batch, lease = self.model.batch, self.model.lease
        ends = {
            edit.edit_id: data.draw(st.sampled_from(["accepted", "accepted", "rejected", "released"]))
            for edit in batch.edits
        }
        accepted, rejected, released = (
            [e for e, end in ends.items() if end == wanted] for wanted in ("accepted", "rejected", "released")
        )
        if accepted:
            new = self.rig.new_snapshot(batch=batch, accepted=accepted)
            parent = self.model.active.get(batch.parent_id or "", frozenset())
            displaced = {old for old, by in batch.displaced if by in accepted}
            self.remember(self.rig.snapshots.commit(lease, new), (parent - displaced) | set(accepted))
        if rejected:
            self.rig.queue.reject(lease, dict.fromkeys(rejected, "no"), report=failing_report(rejected))
        if released:
            self.rig.queue.release(lease, released, reason="ranks died", max_attempts=3)
        self.model.batch = None

    @precondition(lambda self: self.model.lease is not None and self.model.batch is None)
    @rule(passes=st.booleans())
    def remove(self, passes: bool) -> None:
        assert self.model.lease is not None
        removal = self.rig.queue.next_removal(self.model.lease)
        if removal is None:
            return
        if not passes:
            report = failing_report(removal.edit_ids)
            self.rig.queue.fail_removal(self.model.lease, removal, reason="retention", report=report)
            return
        head_id = self.rig.lineage().head_id
        snapshot = self.rig.snapshots.commit(
            self.model.lease, self.rig.new_snapshot(removal=removal, parent_id=head_id)
        )
        parent = self.model.active[head_id or ""]
        self.remember(snapshot, (parent - set(removal.edit_ids)) | set(removal.reinstated_ids))

    @precondition(lambda self: self.model.active)
    @rule(data=st.data(), decision=st.sampled_from(Decision))
    def decide(self, data: st.DataObject, decision: Decision) -> None:
        snapshot = data.draw(st.sampled_from(self.rig.snapshots.snapshots(LINEAGE)))
        num_rows = len(self.rig.query("SELECT approval_id FROM approvals"))
        asked = self.rig.asked(snapshot, decision)
        outcome = self.rig.review.decide(asked)
        after = len(self.rig.query("SELECT approval_id FROM approvals"))
        assert after in (num_rows, num_rows + 1)
        assert outcome.is_accepted or after == num_rows + 1
        if outcome.is_accepted:
            assert self.rig.review.decide(asked).is_accepted

    @precondition(lambda self: self.model.active)
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        head = sorted(self.model.active[self.rig.lineage().head_id or ""])
        if head:
            edit_id = data.draw(st.sampled_from(head))
            assert len(self.rig.review.request_revert(LINEAGE, [edit_id], actor="cli:tester", reason="wrong")) == 1

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
    def every_accepted_request_is_one_edit(self) -> None:
        """I2, on the way in."""
        if hasattr(self, "rig"):
            found = self.rig.query("SELECT count(*) AS num FROM edit_requests")[0]["num"]
            assert found == self.model.num_submitted

    @invariant()
    def the_active_set_is_what_the_history_says(self) -> None:
        """I2: active(head) is active(parent) with the batch, without what was reverted or superseded."""
        if not hasattr(self, "rig"):
            return
        for snapshot_id, expected in self.model.active.items():
            assert self.rig.active(snapshot_id) == expected
        head = self.model.active.get(self.rig.lineage().head_id or "", frozenset())
        snapshotted = self.rig.query("SELECT edit_id::text FROM edit_requests WHERE status = 'snapshotted'")
        assert {row["edit_id"] for row in snapshotted} == head
        keys = [self.rig.edit(edit_id)["conflict_key"] for edit_id in head]
        assert len(keys) == len(set(keys)), "one correction of a fact holds"

    @invariant()
    def there_is_one_line_of_snapshots(self) -> None:
        """I3."""
        if not hasattr(self, "rig"):
            return
        made = self.rig.snapshots.snapshots(LINEAGE)
        assert [snapshot.seq for snapshot in made] == list(range(1, len(made) + 1))
        assert [snapshot.parent_id for snapshot in made] == [None, *(snapshot.snapshot_id for snapshot in made)][
            : len(made)
        ]
        assert self.rig.lineage().head_id == (made[-1].snapshot_id if made else None)
        digests = [snapshot.delta.digest for snapshot in made]
        for place, snapshot in enumerate(made, 1):
            assert snapshot.digest == snapshot_digest(base_digest="b" * 64, delta_digests=digests[:place])
        if made:
            plan = self.rig.snapshots.load_plan(LINEAGE, snapshot_id=made[-1].snapshot_id)
            ledger = [edit_id for rows in plan.ledger for edit_id in rows.edit_ids]
            assert sorted(ledger) == sorted(self.model.active[made[-1].snapshot_id])

    @invariant()
    def the_chain_tells_every_status(self) -> None:
        """I4."""
        if not hasattr(self, "rig"):
            return
        assert self.rig.audit.verify(LINEAGE) is None
        for row in self.rig.query(STATUS_LINES):
            assert row["told"] == row["status"]

    @invariant()
    def the_champion_was_approved(self) -> None:
        """I5 and I8."""
        if not hasattr(self, "rig"):
            return
        lineage = self.rig.lineage()
        if lineage.champion_id is not None:
            assert self.rig.snapshots.snapshot(LINEAGE, "champion").status == "approved"
        above = [snapshot for snapshot in self.rig.snapshots.snapshots(LINEAGE) if snapshot.seq > lineage.champion_seq]
        assert all(snapshot.status != "approved" for snapshot in above)

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
