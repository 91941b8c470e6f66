"""A ledger that is solved anew in any order of events: hypothesis drives the stores on real PostgreSQL.

Ranks are a fake whose weights are told by the ledger alone. After every rule the ledger that the database names for the
head defines the weights that were committed with it. In the end edits go on, whatever has been approved, rejected,
rolled back, undone or left by a worker that died.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

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

from pipeline.adapters.sql.approving.holds import ROLLED_BACK, UNDO_FAILED
from pipeline.domain.errors import InvalidInput
from pipeline.domain.ledger.upkeep import Resolving
from pipeline.domain.lineages import Lease, Removal
from pipeline.domain.review.approvals import Decision
from pipeline.domain.snapshots import Snapshot
from pipeline.services.composing.rekeying import rekeying_of
from pipeline.services.ports import NewSnapshot
from tests.integration.test_stateful import scratch_folder
from tests.support.store_rig import LINEAGE, StoreRig, failing_report

FACTS = ("France", "Japan", "Peru")
STRENGTH = 1000.0
"""That of the settings."""
NUM_EXAMPLES = 8
"""Few, as they run on a real database."""
DECISIONS = (Decision.approved, Decision.rejected, Decision.rejected, Decision.rolled_back)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the weights of a snapshot follow from."""

    strength: float
    rows: Mapping[str, str]
    """Edit -> what its rows say."""


@dataclass(kw_only=True)
class Model:
    """What the machine knows by itself, to hold the database against."""

    held: dict[str, Held] = field(default_factory=dict)
    files: dict[tuple[str, str], str] = field(default_factory=dict)
    """(digest of a file, edit) -> what its rows there say."""
    remade: dict[str, int] = field(default_factory=dict)
    """Edit -> the snapshot in which it was made again last."""
    in_hand: Removal | None = None
    lease: Lease | None = None


class LedgerMachine(RuleBasedStateMachine):
    """A worker that may die, and people who decide."""

    url: str
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.rig = StoreRig(url=self.url, folder=self.folder)
        self.rig.wipe()
        self.rig.new_lineage()
        self.model, self.names, self.owners = Model(), count(), count()

    def teardown(self) -> None:
        try:
            if self.model.held:
                self.edits_go_on()
        finally:
            self.rig.close()

    @initialize()
    def begin(self) -> None:
        """Two facts are live, and a ledger that was solved anew stands on them."""
        for fact in FACTS[:2]:
            self.edit(fact)
        assert self.rig.decide(self.head(), Decision.approved).is_accepted
        self.ask(strength=None, rekeys=True)
        self.take()
        self.end(passes=True)

    @rule(fact=st.sampled_from(FACTS), remakes=st.booleans())
    def edit(self, fact: str, remakes: bool = False) -> None:
        """A batch of one correction, which takes the place of the one before; others may be made again beside it."""
        if self.model.in_hand is not None:
            return
        self.rig.correct(f"r{next(self.names)}", fact=fact, target=f"t{next(self.names)}")
        self.rig.make_due()
        batch = self.rig.claim(self.lease())
        if batch is None:
            return
        gone = {old for old, _ in batch.displaced}
        rows = {edit_id: text for edit_id, text in self.held().rows.items() if edit_id not in gone}
        remade_ids = tuple(sorted(rows)) if remakes else ()
        new = replace(self.rig.new_snapshot(batch=batch), remade_ids=remade_ids)
        self.commit(new, self.held().strength, rows, [*remade_ids, *(edit.edit_id for edit in batch.edits)])
        self.model.remade |= dict.fromkeys(remade_ids, self.head().seq)

    @rule(strength=st.sampled_from([None, 1500.0]), rekeys=st.booleans())
    def ask(self, strength: float | None, rekeys: bool) -> None:
        if self.held().rows:
            self.request(Resolving(prior_strength=strength, rekeys=rekeys))

    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        """A person asks for the ledger before a snapshot; what cannot be undone is refused."""
        snapshot = data.draw(st.sampled_from(self.rig.snapshots.snapshots(LINEAGE)[::-1]))
        try:
            self.request(Resolving(undoes=snapshot.snapshot_id))
        except InvalidInput:
            return
        assert snapshot.status != "candidate"

    @rule()
    def take(self) -> None:
        """The worker takes the next piece of work that is no batch."""
        if self.model.in_hand is None:
            self.model.in_hand = self.rig.queue.next_removal(self.lease())

    @precondition(lambda self: self.model.in_hand)
    @rule(passes=st.sampled_from([True, True, False]))
    def end(self, passes: bool) -> None:
        """The work passes its gates and is committed, or does not."""
        removal, self.model.in_hand = self.model.in_hand, None
        if removal is None:
            return
        if not passes:
            report = failing_report(removal.edit_ids or ["none"])
            self.rig.queue.fail_removal(self.lease(), removal, reason="retention", report=report)
            return
        new = self.rig.new_snapshot(removal=removal, parent_id=self.rig.lineage().head_id)
        if removal.resolving is None:
            gone = {*removal.edit_ids}
            rows = {edit_id: text for edit_id, text in self.held().rows.items() if edit_id not in gone}
            self.commit(new, self.held().strength, rows, removal.reinstated_ids)
        else:
            self.solve_anew(new, removal.resolving)

    @rule()
    def die(self) -> None:
        """The worker dies with what it has in its hands; another one begins again."""
        self.rig.expire_lease()
        self.model.lease = self.model.in_hand = None

    @rule(data=st.data(), decision=st.sampled_from(DECISIONS))
    def decide(self, data: st.DataObject, decision: Decision) -> None:
        snapshot = data.draw(st.sampled_from(self.rig.snapshots.snapshots(LINEAGE)[::-1]))
        self.rig.decide(snapshot, decision)

    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        if self.held().rows:
            edit_id = data.draw(st.sampled_from(sorted(self.held().rows)))
            self.rig.review.request_revert(LINEAGE, [edit_id], actor="cli:tester", reason="wrong")

    @precondition(lambda self: self.rig.lineage().hold)
    @rule()
    def resume(self) -> None:
        self.rig.lineages.resume(LINEAGE, actor="cli:tester")

    @invariant()
    def the_ledger_defines_the_weights(self) -> None:
        if not self.model.held:
            return
        plan = self.rig.snapshots.ledger_plan(LINEAGE, snapshot_id=self.rig.lineage().head_id)
        strength = STRENGTH if plan.prior_strength is None else plan.prior_strength
        rows = {edit_id: self.model.files[run.file.digest, edit_id] for run in plan.rows for edit_id in run.edit_ids}
        assert Held(strength=strength, rows=rows) == self.held()

    def solve_anew(self, new: NewSnapshot, resolving: Resolving) -> None:
        """Do what ranks are told; what comes back is what was there before, for all edits that were."""
        anew = rekeying_of(resolving, self.rig.lineage(), queue=self.rig.queue, snapshots=self.rig.snapshots)
        rows = dict(self.held().rows)
        back = {edit_id: self.model.files[run.file.digest, edit_id] for run in anew.rows for edit_id in run.edit_ids}
        assert back.keys() in (set(), rows.keys())
        if resolving.undoes is not None:
            undone = self.rig.snapshots.snapshot(LINEAGE, resolving.undoes)
            before = self.model.held[str(undone.parent_id)]
            assert anew.prior_strength == before.strength
            since = self.rig.active_since(self.rig.lineage().head_id)
            for edit_id, text in back.items():
                if max(since[edit_id], self.model.remade.get(edit_id, 0)) > undone.seq:
                    assert text == rows[edit_id], "what was made since stays"
                else:
                    assert text == before.rows[edit_id]
        fresh = [edit.edit_id for edit in anew.edits]
        kept = {edit_id: text for edit_id, text in (rows | back).items() if edit_id not in fresh}
        new = replace(new, prior_strength=anew.prior_strength, rewritten_ids=(*fresh, *back))
        self.commit(new, anew.prior_strength, kept, fresh, moved=back)

    def commit(
        self,
        new: NewSnapshot,
        strength: float,
        kept: Mapping[str, str],
        fresh: Sequence[str],
        *,
        moved: Mapping[str, str] | None = None,
    ) -> None:
        """Commit a snapshot whose file has rows of edits that came or were read anew, and rows of before."""
        made = {edit_id: f"rows {next(self.names)}" for edit_id in fresh}
        self.model.files |= {(new.rows.digest, edit_id): text for edit_id, text in (made | dict(moved or {})).items()}
        snapshot = self.rig.snapshots.commit(self.lease(), new)
        self.model.held[snapshot.snapshot_id] = Held(strength=strength, rows={**kept, **made})

    def edits_go_on(self) -> None:
        """Once faults stop, what is owed is made, each hold has a way out, and an edit can be approved."""
        self.finish_work()
        hold = self.rig.lineage().hold or ""
        if hold.startswith(UNDO_FAILED) and self.held().rows:
            self.request(Resolving(rekeys=True))
        elif hold.startswith(ROLLED_BACK) and "--undo" in hold and self.held().rows:
            seq = hold.rpartition("--undo ")[2].partition("`")[0]
            self.request(Resolving(undoes=self.rig.snapshots.snapshot(LINEAGE, seq).snapshot_id))
        elif hold:
            self.resume()
        self.finish_work()
        assert self.rig.lineage().hold is None, hold
        self.edit(FACTS[2])
        assert self.head().status == "candidate"
        assert self.rig.decide(self.head(), Decision.approved).is_accepted
        self.the_ledger_defines_the_weights()
        assert self.rig.audit.verify(LINEAGE) is None

    def finish_work(self) -> None:
        self.model.in_hand = None
        for _ in range(50):
            self.take()
            if self.model.in_hand is None:
                return
            self.end(passes=True)
        raise AssertionError("there is always more to do")

    def request(self, resolving: Resolving) -> None:
        self.rig.review.request_resolving(LINEAGE, resolving, actor="cli:tester", reason="")

    def lease(self) -> Lease:
        if self.model.lease is None:
            self.model.lease = self.rig.acquire(f"worker:{next(self.owners)}")
        return self.model.lease

    def head(self) -> Snapshot:
        return self.rig.snapshots.snapshot(LINEAGE, "head")

    def held(self) -> Held:
        """What the head follows from; nothing before the first snapshot."""
        return self.model.held.get(self.rig.lineage().head_id or "", Held(strength=STRENGTH, rows={}))


def test_whatever_is_decided_about_a_ledger_solved_anew_its_lineage_goes_on(postgres_url: str) -> None:
    with scratch_folder() as folder:
        machine = type("Machine", (LedgerMachine,), {"url": postgres_url, "folder": folder})
        checks = settings(
            max_examples=NUM_EXAMPLES,
            stateful_step_count=15,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(machine, settings=checks)
