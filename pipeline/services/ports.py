"""What services take of which tests put a fake in the place; the rest they take from the adapters as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from pipeline.domain.batches import EditBatch
from pipeline.domain.contract.messages import DeadLetter, PartitionClaim, PartitionKey, Poll, PollCounts
from pipeline.domain.gates import GateReport
from pipeline.domain.lineages import Lineage, Removal
from pipeline.domain.rank_api import (
    Candidate,
    CandidateOutcome,
    EditorSettings,
    KeptFiles,
    Loaded,
    LoadPlan,
)
from pipeline.domain.review.approvals import Approval, Outcome
from pipeline.domain.snapshots import Artifact, Basis, Snapshot


class IntakeStore(Protocol):
    """Where polls are recorded."""

    def take_partition(self, partition: PartitionKey) -> PartitionClaim:
        """Raise the partition's epoch and say what comes next (0 for a new incarnation)."""

    def record(self, polls: Sequence[Poll]) -> PollCounts:
        """Record requests, dead letters, next offsets, audit and outbox rows in one transaction.

        Raises:
            EpochStale: if any partition was taken by somebody else; nothing was written.
        """


class DeadLetterStore(Protocol):
    """What could never be an edit."""

    def dead_letter(self, dead_letter_id: str) -> DeadLetter:
        """Return one dead letter.

        Raises:
            UnknownRecord: if there is none.
        """


class LineageStore(Protocol):
    """Lineages and their holds."""

    def lineage(self, name: str) -> Lineage:
        """Return one lineage.

        Raises:
            UnknownLineage: if there is none.
        """

    def lineages(self) -> tuple[Lineage, ...]:
        """Return every lineage, sorted by name."""

    def hold(self, name: str, *, reason: str, actor: str) -> None:
        """Let no batch start until a person resumes; a second hold keeps the first reason."""

    def bind_base(self, name: str, config_digest: str) -> None:
        """Record the configurations of a base whose digest leaves them out, once (audit `lineage:base_bound`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSnapshot:
    """Everything that one commit writes."""

    snapshot_id: str
    """UUID, chosen before measuring."""
    parent_id: str | None
    """The head it was made on; compared in the transaction."""
    basis: Basis
    """What the delta stands on."""
    delta: Artifact
    """The delta's file."""
    rows: Artifact
    """The ledger rows' file."""
    accumulator: Artifact | None
    """The accumulators' file, where one is due."""
    digest: str
    """Identity of the weights."""
    report: GateReport
    """The passing report."""
    batch: EditBatch | None
    """The batch, without the edits that were not accepted; None for a removal."""
    removal: Removal | None
    """The removal, or the ledger that was solved anew; None for a batch."""
    seconds: Mapping[str, float]
    """Wall time of each phase."""
    rewritten_ids: tuple[str, ...] = ()
    """Active edits of earlier snapshots whose ledger rows are in `rows` too; it is their file from now on."""
    remade_ids: tuple[str, ...] = ()
    """Active edits of earlier snapshots that were made again, in the order of their new rows, which are in `rows`."""
    traceparent: str | None = None
    """Where the trace of the batch goes on; None if there is no trace."""
    prior_strength: float | None = None
    """The prior's strength from now on, where the ledger was solved anew; None for the parent's."""


class SnapshotStore(Protocol):
    """Where snapshots are looked up."""

    def snapshot(self, lineage: str, ref: str) -> Snapshot:
        """Return the snapshot with an id or a seq, or the one that is `head` or `champion`.

        Raises:
            UnknownRecord: if there is none.
        """

    def snapshots(self, lineage: str) -> tuple[Snapshot, ...]:
        """Return every snapshot of a lineage, oldest first."""


class ReviewStore(Protocol):
    """Decisions of people, each one transaction."""

    def decide(self, approval: Approval) -> Outcome:
        """Check with `approvals.refusal` on locked rows, and carry out: statuses, champion, audit, outbox, removal.

        A refusal is recorded too (`approval:refused`). The same decision twice is accepted and changes nothing.
        """

    def approve_automatically(self, lineage: str) -> Outcome | None:
        """Make the head live where the lineage's policy does that without a person; else say why it does not.

        Only what is accepted is recorded. None where there is nothing to decide.
        """

    def request_revert(self, lineage: str, edit_ids: Sequence[str], *, actor: str, reason: str) -> tuple[str, ...]:
        """Owe a removal of active edits (queued ones are `reverted` at once); returns the removal ids.

        Raises:
            UnknownRecord: if an id names no edit of this lineage.
            InvalidInput: if an edit is neither queued nor active.
        """

    def note(self, lineage: str, *, action: str, subject: str, actor: str, payload: Mapping[str, Any]) -> None:
        """Append one audit line that moves no status (`champion:restored`)."""


CLAIM = timedelta(minutes=1)
"""For so long nobody else gets an item that a relay has taken, and longer if the relay renews it."""
POSTPONED = timedelta(seconds=5)
"""A service that was away is asked again so soon, however long it stays away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutboxItem:
    """A side effect that is owed."""

    outbox_id: str
    """UUID of the side effect."""
    kind: str
    """`doorbell`, `result`, `dead_letter`, `register`, `reregister`, `champion` or `webhook`."""
    dedup_key: str
    """Deterministic; doing it twice is the same as once."""
    payload: Mapping[str, Any]
    """What the goal is about, for example `{"lineage": …}`."""
    attempts: int
    """Tries that failed so far, without those that met a service that was away."""
    claim: str
    """UUID of the claim that it was handed out with: whoever claims it later has another."""


class OutboxStore(Protocol):
    """Side effects that are owed."""

    def due(self, kind: str | None = None, *, limit: int = 100) -> tuple[OutboxItem, ...]:
        """Claim items that are due, oldest first; of a stream only its oldest.

        No other relay has them for a minute. What shares a stream is so carried out in the order in which it was owed.
        """

    def renew(self, items: Sequence[OutboxItem]) -> frozenset[str]:
        """Keep the claims of items for another minute; return the ids of those that are still ours and not done."""

    def release(self, items: Sequence[OutboxItem]) -> None:
        """Give claims back, so that the items are due at once."""

    def done(self, outbox_ids: Sequence[str]) -> None:
        """Note that goals are reached."""

    def postponed(self, item: OutboxItem, *, error: str, wait: timedelta = POSTPONED) -> None:
        """Try again after a wait, which counts as no try: the service is away, which says nothing of the item."""

    def failed(self, item: OutboxItem, *, error: str) -> bool:
        """Try again later, with growing waits; True if that was the last try and the item is given up."""


class EditorGroup(Protocol):
    """The ranks that hold a model."""

    def resume(self, lineage: str, *, snapshot_id: str | None, editor: EditorSettings, epoch: int) -> Loaded | None:
        """Go on from a snapshot that is held together with its ledger; None if it has to be loaded.

        Raises:
            LeaseLost: if the ranks have seen a higher epoch of the lineage.
        """

    def load(self, plan: LoadPlan, *, epoch: int) -> Loaded:
        """Hold this snapshot (nothing is read again if it is held already).

        Raises:
            WrongBase, IntegrityBroken, EngineFailed.
        """

    def try_edits(self, candidate: Candidate) -> CandidateOutcome:
        """Edit, apply, measure, and go back to the loaded snapshot.

        Raises:
            EditorFailed: if the numbers cannot be used; the weights are the loaded snapshot's.
            EngineFailed: if the group died.
        """

    def keep(self, candidate_id: str, *, folder: Path, with_accumulator: bool) -> KeptFiles:
        """Write the files of a tried candidate and hold it from now on."""

    def held(self, snapshot_id: str, *, digest: str) -> None:
        """Say under which snapshot the kept candidate was committed."""


class Doorbell(Protocol):
    """Wakes an edit worker."""

    def ring(self, lineage: str, *, base_digest: str) -> None:
        """Say that a lineage has work; may be lost or repeated."""


class Publisher(Protocol):
    """Writes to topics."""

    def publish(self, topic: str, *, key: str, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Send and wait for the acknowledgement.

        Raises:
            Unavailable: if the broker does not acknowledge.
        """


class HistoryStore(Protocol):
    """The auditors' views."""

    def edit(self, lineage: str, ref: str) -> Mapping[str, Any]:
        """Return one row of `edit_history`, by edit id or request id, with its audit lines under `events`.

        Raises:
            UnknownRecord: if there is none.
        """

    def snapshot_seq(self, edit_id: str) -> int | None:
        """Return the first snapshot that held an edit; None if none did."""
