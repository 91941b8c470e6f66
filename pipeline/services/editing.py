"""Turns the waiting work of a lineage into snapshots, under its lease.

What a piece of work costs here depends on what it holds, not on how many edits the lineage has.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from pipeline.domain.batches import EditBatch, Setback
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, LeaseLost, one_line
from pipeline.domain.failpoints import failpoint
from pipeline.domain.judging import judge, unmeasured
from pipeline.domain.lineages import Lineage, Removal
from pipeline.domain.rank_api import Candidate, Loaded, Rekeying
from pipeline.domain.scratch import scratch_folder
from pipeline.domain.snapshots import Basis, Snapshot, chained_digest, stores_accumulator
from pipeline.services.batch_in_hand import BatchInHand
from pipeline.services.bisecting import Attempt, Sifted, sift
from pipeline.services.composing.candidates import Composition, candidate_of, part_of
from pipeline.services.composing.rekeying import rekeying_of
from pipeline.services.edit_telling import tell_settled, telling_of_batch, telling_of_trial
from pipeline.services.lease_keeping import LeaseKeeper
from pipeline.services.ports import EditorGroup, LineageStore, NewSnapshot
from pipeline.telemetry import tracing

if TYPE_CHECKING:
    from pipeline.adapters.file_artifacts import FileArtifacts
    from pipeline.adapters.sql.leases import SqlLeaseStore
    from pipeline.adapters.sql.queue import SqlEditQueue
    from pipeline.adapters.sql.snapshots import SqlSnapshotStore

log = structlog.get_logger()

FILLING_POLL_SECONDS = 0.1
"""How often a batch that is not closed yet is looked at; it closes within `EditPolicy.batch_max_wait`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditPolicy:
    """How a worker takes work."""

    owner: str
    """Name of this worker in leases and audit lines."""
    lease_ttl: timedelta
    """Life of a lease."""
    batch_max_wait: timedelta
    """A batch that is not full closes when its oldest edit has waited this long, or its newest a quarter of it."""
    max_attempts: int
    """Tries of an edit by itself, without a verdict, before it is dead."""
    batches_per_turn: int = 8
    """After so many pieces of work a lineage makes way for others of its base that wait."""


class EditService:
    """The one use case of an edit worker."""

    def __init__(
        self,
        *,
        leases: SqlLeaseStore,
        lineages: LineageStore,
        queue: SqlEditQueue,
        snapshots: SqlSnapshotStore,
        artifacts: FileArtifacts,
        group: EditorGroup,
        policy: EditPolicy,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._leases = leases
        self._lineages = lineages
        self._queue = queue
        self._snapshots = snapshots
        self._artifacts = artifacts
        self._group = group
        self._policy = policy
        self._on_progress = on_progress

    def run(self, lineage: str) -> int:
        """Work until the lineage has nothing due or it is another one's turn; returns the number of snapshots made.

        Returns 0 at once when somebody else holds the lease: a doorbell may ring twice. A lineage that makes way for
        others rings again for itself.

        Raises:
            LeaseLost: the lease passed to somebody else; nothing of ours was written after that.
            EngineFailed: the ranks died; claimed edits are back in the queue.
        """
        policy = self._policy
        lease = self._leases.acquire(
            lineage, owner=policy.owner, ttl=policy.lease_ttl, max_attempts=policy.max_attempts
        )
        if lease is None:
            log.info("lineage is leased to another worker", lineage=lineage)
            return 0
        failpoint("edit.after_acquire")
        num_snapshots = num_done = 0
        with LeaseKeeper(self._leases, lease, ttl=policy.lease_ttl, on_step=self._on_progress) as keeper:
            while (made := self._next(lineage, keeper)) is not None or self._is_filling(lineage):
                num_snapshots += made or 0
                num_done += made is not None
                if made is not None and num_done % policy.batches_per_turn == 0:
                    keeper.rings = self._leases.others_wait(lineage)
                    if keeper.rings:
                        log.info("lineage makes way for others", lineage=lineage, done=num_done)
                        break
        return num_snapshots

    def _is_filling(self, lineage: str) -> bool:
        """Return whether a batch waits for more edits or for its time, after a moment's wait if so."""
        if not self._queue.is_filling(lineage):
            return False
        time.sleep(FILLING_POLL_SECONDS)
        return True

    def _next(self, lineage: str, keeper: LeaseKeeper) -> int | None:
        """Do the next piece of work; the number of snapshots it made, None if there was no work."""
        self._on_progress()
        removal = self._queue.next_removal(keeper.lease)
        if removal is not None:
            with keeper.doing("removing" if removal.resolving is None else "rekeying", len(removal.edit_ids)):
                return self._remove(removal, keeper)
        batch_size = self._lineages.lineage(lineage).settings.editor.batch_size
        batch = self._queue.claim_batch(keeper.lease, limit=batch_size, max_wait=self._policy.batch_max_wait)
        if batch is None:
            return None
        failpoint("edit.after_claim")
        in_hand = self._in_hand(batch.edits, keeper)
        with (
            telling_of_batch(batch),
            in_hand.released_on_failure(),
            keeper.doing("editing", len(batch.edits)),
        ):
            return self._edit(batch, in_hand, keeper)

    def _in_hand(self, edits: Sequence[Edit], keeper: LeaseKeeper) -> BatchInHand:
        return BatchInHand(
            edits, keeper, queue=self._queue, lineages=self._lineages, max_attempts=self._policy.max_attempts
        )

    def _edit(self, batch: EditBatch, in_hand: BatchInHand, keeper: LeaseKeeper) -> int:
        on = self._compose(batch.lineage, batch.parent_id, batch.edits, in_hand, keeper)
        log.info("batch claimed", lineage=batch.lineage, ordinal=batch.ordinal, edits=len(batch.edits))

        def attempt(edits: tuple[Edit, ...], refused: Attempt | None) -> Attempt:
            chosen = {edit.edit_id for edit in edits}
            displaced = [old for old, new in batch.displaced if new in chosen]
            candidate = candidate_of(on, queue=self._queue, added=edits, removed_ids=displaced)
            if refused is not None and refused.was_measured:
                candidate = part_of(refused.candidate, candidate)
            return self._attempt(on, candidate, keeper=keeper)

        with in_hand.on_trial(batch.edits):
            sifted = sift(batch.edits, attempt)
            if sifted.kept is not None:
                chosen = {edit.edit_id for edit in sifted.accepted}
                displaced = tuple(pair for pair in batch.displaced if pair[1] in chosen)
                kept = replace(batch, edits=sifted.accepted, displaced=displaced)
                with in_hand.on_trial(sifted.accepted):
                    self._commit(on, sifted.kept, keeper, batch=kept, removal=None)
            self._settle(batch, sifted, in_hand, keeper)
        tell_settled(batch.lineage, snapshotted=len(sifted.accepted), rejected=len(sifted.offenders))
        return int(sifted.kept is not None)

    def _settle(self, batch: EditBatch, sifted: Sifted, in_hand: BatchInHand, keeper: LeaseKeeper) -> None:
        """Say what became of the edits that are not in the snapshot."""
        for offender in sifted.offenders:
            with in_hand.on_trial([offender.edit]):
                self._queue.reject(keeper.lease, {offender.edit.edit_id: offender.reason}, report=offender.report)
            failpoint("edit.after_reject")
        if sifted.saturated is not None:
            reason = f"saturated: {sifted.saturated.summary}"
            self._lineages.hold(batch.lineage, reason=reason, actor=self._policy.owner)
            failpoint("edit.after_hold")
        reason = (
            "lineage saturated" if sifted.saturated is not None else "the batch was divided; it is to be tried next"
        )
        in_hand.release(sifted.untried, reason=reason, setback=Setback.untried)
        reason = "the batch passed its gates without it; it is to be tried on top of that"
        in_hand.release(sifted.suspects, reason=reason, setback=Setback.suspected)
        reason = "not decided within the bound of trials"
        in_hand.release(sifted.undecided, reason=reason, setback=Setback.together)

    def _remove(self, removal: Removal, keeper: LeaseKeeper) -> int:
        head_id = self._lineages.lineage(removal.lineage).head_id
        in_hand = self._in_hand((), keeper)
        try:
            back = self._queue.edits(removal.lineage, removal.reinstated_ids)
            on = self._compose(removal.lineage, head_id, back, in_hand, keeper)
            with in_hand.on_trial(back):
                rekeying = self._rekeying(on.lineage, removal)
                candidate = candidate_of(
                    on, queue=self._queue, added=back, removed_ids=removal.edit_ids, rekeying=rekeying
                )
                attempt = self._attempt(on, candidate, keeper=keeper, is_undo=removal.is_undo)
                if attempt.report.passed:
                    self._commit(on, attempt, keeper, batch=None, removal=removal)
                    return 1
        except LeaseLost:
            raise
        except Exception as error:
            is_attempt = in_hand.is_to_blame(error)
            self._queue.put_off_removal(keeper.lease, removal, reason=one_line(error), is_attempt=is_attempt)
            raise
        self._queue.fail_removal(keeper.lease, removal, reason=attempt.report.summary, report=attempt.report)
        failpoint("edit.after_removal_failed")
        return 0

    def _rekeying(self, lineage: Lineage, removal: Removal) -> Rekeying | None:
        if removal.resolving is None:
            return None
        return rekeying_of(removal.resolving, lineage, queue=self._queue, snapshots=self._snapshots)

    def _compose(
        self,
        lineage: str,
        parent_id: str | None,
        edits: Sequence[Edit],
        in_hand: BatchInHand,
        keeper: LeaseKeeper,
    ) -> Composition:
        found = self._lineages.lineage(lineage)
        loaded = self._loaded(found, parent_id, epoch=keeper.lease.epoch)
        return Composition(
            lineage=found,
            parent_id=parent_id,
            snapshot_id=str(uuid.uuid4()),
            suite_keys=loaded.suite_keys,
            edited_names=self._queue.edited_names(lineage, loaded.guard_names) if loaded.guard_names else (),
            related_subjects=self._queue.related_subjects(lineage, edits),
            in_hand=in_hand,
        )

    def _loaded(self, lineage: Lineage, parent_id: str | None, *, epoch: int) -> Loaded:
        """Have the group hold the parent. The plans, which grow with the lineage, are made only if it does not."""
        settings = lineage.settings
        held = self._group.resume(settings.name, snapshot_id=parent_id, editor=settings.editor, epoch=epoch)
        if held is not None:
            return held
        plan = self._snapshots.load_plan(settings.name, snapshot_id=parent_id)
        ledger = self._snapshots.ledger_plan(settings.name, snapshot_id=parent_id)
        loaded = self._group.load(replace(plan, ledger=ledger), epoch=epoch)
        if loaded.config_digest is not None:
            self._lineages.bind_base(settings.name, loaded.config_digest)
        return loaded

    def _attempt(
        self,
        on: Composition,
        candidate: Candidate,
        *,
        keeper: LeaseKeeper,
        is_undo: bool = False,
    ) -> Attempt:
        _ = keeper.lease  # stop early when the lease is known to be lost
        added, rekeying = candidate.added, candidate.rekeying
        keeper.tries(len(added))
        policy, editor = on.lineage.settings.policy, on.lineage.settings.editor_identity
        name = on.lineage.settings.name
        with on.in_hand.on_trial(added), telling_of_trial(name, added) as judged:
            try:
                outcome = self._group.try_edits(candidate)
            except EditorFailed as error:
                report = unmeasured(policy, [edit.edit_id for edit in added], reason=str(error), editor=editor)
                judged(report, {})
                return Attempt(candidate=candidate, report=report, seconds={})
            requests = {edit.edit_id: edit.request for edit in added}
            report = judge(policy, outcome.measurements, editor=editor, requests=requests, is_undo=is_undo)
            judged(report, outcome.seconds)
        self._on_progress()
        failpoint("edit.after_trial")
        seconds = {phase: round(spent, 2) for phase, spent in outcome.seconds.items()}
        log.info("candidate judged", lineage=name, edits=len(added), verdict=report.summary, **seconds)
        return Attempt(
            candidate=candidate,
            report=report,
            seconds=outcome.seconds,
            prior_strength=rekeying.prior_strength if rekeying else None,
        )

    def _commit(
        self,
        on: Composition,
        attempt: Attempt,
        keeper: LeaseKeeper,
        *,
        batch: EditBatch | None,
        removal: Removal | None,
    ) -> Snapshot:
        seq = on.lineage.head_seq + 1
        with tracing.span("snapshot.commit", snapshot=on.snapshot_id, seq=seq):
            with scratch_folder("candidate") as folder:
                new = self._stored(on, attempt, Path(folder), seq=seq, batch=batch, removal=removal)
            failpoint("edit.before_commit")
            snapshot = self._snapshots.commit(keeper.lease, new)
            failpoint("edit.after_commit")
        self._group.held(snapshot.snapshot_id, digest=snapshot.digest)
        log.info("snapshot committed", lineage=snapshot.lineage, seq=snapshot.seq, digest=snapshot.digest[:12])
        return snapshot

    def _stored(
        self,
        on: Composition,
        attempt: Attempt,
        folder: Path,
        *,
        seq: int,
        batch: EditBatch | None,
        removal: Removal | None,
    ) -> NewSnapshot:
        """Write the candidate's files into the artifact store and describe the snapshot they make."""
        basis = Basis.parent
        # A ledger that was solved anew has changes of full rank, as large as the accumulators.
        is_whole = stores_accumulator(seq=seq, basis=basis) or (removal is not None and removal.resolving is not None)
        kept = self._group.keep(attempt.candidate.candidate_id, folder=folder, with_accumulator=is_whole)
        delta = self._artifacts.put(Path(kept.delta.path))
        failpoint("edit.after_delta")
        return NewSnapshot(
            snapshot_id=on.snapshot_id,
            parent_id=on.parent_id,
            basis=basis,
            delta=delta,
            rows=self._artifacts.put(Path(kept.rows.path)),
            accumulator=self._artifacts.put(Path(kept.accumulator.path)) if kept.accumulator else None,
            digest=chained_digest(on.lineage.head_digest, delta.digest),
            report=attempt.report,
            batch=batch,
            removal=removal,
            seconds=attempt.seconds,
            rewritten_ids=kept.rewritten_ids,
            remade_ids=attempt.report.measurements.remade,
            traceparent=tracing.current(),
            prior_strength=attempt.prior_strength,
        )
