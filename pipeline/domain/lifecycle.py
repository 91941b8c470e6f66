"""Every status and every legal transition, in one table."""

from __future__ import annotations

from enum import StrEnum

from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import IllegalTransition


class EditStatus(StrEnum):
    """Where an edit stands, as of the head of its lineage."""

    received = "received"
    """Recorded, waiting for a batch."""
    claimed = "claimed"
    """In the batch that is being edited now."""
    snapshotted = "snapshotted"
    """In the active set of the head."""
    rejected = "rejected"
    """Failed its gate, or its snapshot was rejected."""
    superseded = "superseded"
    """A later correction of the same fact holds."""
    reverted = "reverted"
    """Taken out of the head by a person."""
    dead = "dead"
    """Failed too often for reasons that are not the edit's; a person must look."""


class SnapshotStatus(StrEnum):
    """Where a snapshot stands. The champion is a pointer of the lineage, not a status."""

    candidate = "candidate"
    approved = "approved"
    rejected = "rejected"
    retired = "retired"
    rolled_back = "rolled_back"


class RemovalStatus(StrEnum):
    """Where a request to take edits out of the head stands."""

    requested = "requested"
    done = "done"
    failed = "failed"


EDIT_TRANSITIONS: dict[tuple[EditStatus | None, EditStatus], AuditAction] = {
    (None, EditStatus.received): AuditAction.edit_received,
    (EditStatus.received, EditStatus.claimed): AuditAction.edit_claimed,
    (EditStatus.received, EditStatus.superseded): AuditAction.edit_superseded,
    (EditStatus.received, EditStatus.reverted): AuditAction.edit_reverted,
    (EditStatus.claimed, EditStatus.received): AuditAction.edit_released,
    (EditStatus.claimed, EditStatus.snapshotted): AuditAction.edit_snapshotted,
    (EditStatus.claimed, EditStatus.rejected): AuditAction.edit_rejected,
    (EditStatus.claimed, EditStatus.dead): AuditAction.edit_died,
    (EditStatus.claimed, EditStatus.superseded): AuditAction.edit_superseded,
    (EditStatus.snapshotted, EditStatus.superseded): AuditAction.edit_superseded,
    (EditStatus.snapshotted, EditStatus.reverted): AuditAction.edit_reverted,
    (EditStatus.snapshotted, EditStatus.rejected): AuditAction.edit_rejected,
    (EditStatus.superseded, EditStatus.snapshotted): AuditAction.edit_reinstated,
    (EditStatus.superseded, EditStatus.received): AuditAction.edit_reinstated,
    (EditStatus.dead, EditStatus.received): AuditAction.edit_released,
}

SNAPSHOT_TRANSITIONS: dict[tuple[SnapshotStatus | None, SnapshotStatus], AuditAction] = {
    (None, SnapshotStatus.candidate): AuditAction.snapshot_created,
    (SnapshotStatus.candidate, SnapshotStatus.approved): AuditAction.snapshot_approved,
    (SnapshotStatus.candidate, SnapshotStatus.rejected): AuditAction.snapshot_rejected,
    (SnapshotStatus.candidate, SnapshotStatus.retired): AuditAction.snapshot_retired,
    (SnapshotStatus.approved, SnapshotStatus.rolled_back): AuditAction.snapshot_rolled_back,
    (SnapshotStatus.rolled_back, SnapshotStatus.approved): AuditAction.snapshot_approved,
}


def edit_action(before: EditStatus | None, after: EditStatus) -> AuditAction:
    """Return the audit action of moving an edit.

    Raises:
        IllegalTransition: if the table does not hold the move.
    """
    try:
        return EDIT_TRANSITIONS[before, after]
    except KeyError:
        raise IllegalTransition(f"expected a legal move of an edit, got {before} to {after}") from None


def snapshot_action(before: SnapshotStatus | None, after: SnapshotStatus) -> AuditAction:
    """Return the audit action of moving a snapshot.

    Raises:
        IllegalTransition: if the table does not hold the move.
    """
    try:
        return SNAPSHOT_TRANSITIONS[before, after]
    except KeyError:
        raise IllegalTransition(f"expected a legal move of a snapshot, got {before} to {after}") from None
