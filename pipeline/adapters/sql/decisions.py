"""What follows from a decision that was not refused. Runs inside its transaction, on locked rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update

from pipeline.adapters.sql import removals
from pipeline.adapters.sql.active_sets import brought_by
from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.lineages import hold_after_roll_back, lift_after_roll_back
from pipeline.adapters.sql.locks import LockedLineage
from pipeline.adapters.sql.outbox import owe
from pipeline.adapters.sql.statuses import move_snapshots
from pipeline.adapters.sql.tables import lineages, snapshots
from pipeline.domain.approvals import Approval, Decision
from pipeline.domain.audit import AuditAction
from pipeline.domain.lifecycle import SnapshotStatus


def carry_out(
    connection: Connection, on: LockedLineage, row: Row[Any], approval: Approval, *, approval_id: str
) -> None:
    """Do what was decided about the snapshot of `row`."""
    match approval.decision:
        case Decision.approved:
            _approve(connection, on, row, approval, approval_id)
        case Decision.rejected:
            _reject(connection, on, row, approval, approval_id)
        case Decision.rolled_back:
            _roll_back(connection, on, row, approval, approval_id)


def _approve(connection: Connection, on: LockedLineage, row: Row[Any], approval: Approval, approval_id: str) -> None:
    """Approve a snapshot and every candidate that it is built on, and make it the champion."""
    built_on = _ids(connection, on, snapshots.c.seq < row.seq, snapshots.c.status == SnapshotStatus.candidate)
    about = _about(approval, approval_id)
    approved = SnapshotStatus.approved
    move_snapshots(connection, [*built_on, row.snapshot_id], approved, on=on, actor=approval.actor, about=about)
    _move_champion(connection, on, row, approval, approval_id)
    lift_after_roll_back(connection, on, because=f"snapshot {row.seq} was approved", actor=approval.actor)


def _reject(connection: Connection, on: LockedLineage, row: Row[Any], approval: Approval, approval_id: str) -> None:
    """Reject a candidate, retire what stands on it, and owe a head without the edits it brought."""
    about = _about(approval, approval_id)
    rejected, retired = SnapshotStatus.rejected, SnapshotStatus.retired
    move_snapshots(connection, [row.snapshot_id], rejected, on=on, actor=approval.actor, about=about)
    above = _ids(connection, on, snapshots.c.seq > row.seq, snapshots.c.status == SnapshotStatus.candidate)
    move_snapshots(connection, above, retired, on=on, actor=approval.actor, about=about | {"stands_on": row.seq})
    edit_ids = _brought_and_active(connection, row)
    if edit_ids:
        reason = f"snapshot {row.seq} was rejected" + (f": {approval.reason}" if approval.reason else "")
        removals.request(
            connection, on, edit_ids, rejected_snapshot_id=row.snapshot_id, actor=approval.actor, reason=reason
        )


def _roll_back(connection: Connection, on: LockedLineage, row: Row[Any], approval: Approval, approval_id: str) -> None:
    """Make an approved ancestor the champion at once, and hold the lineage."""
    above = _ids(connection, on, snapshots.c.seq > row.seq, snapshots.c.status == SnapshotStatus.approved)
    about = _about(approval, approval_id) | {"rolled_back_to": row.seq}
    move_snapshots(connection, above, SnapshotStatus.rolled_back, on=on, actor=approval.actor, about=about)
    _move_champion(connection, on, row, approval, approval_id)
    hold_after_roll_back(connection, on, seq=row.seq, reason=approval.reason, actor=approval.actor)


def _move_champion(
    connection: Connection, on: LockedLineage, row: Row[Any], approval: Approval, approval_id: str
) -> None:
    is_lineage = lineages.c.lineage_id == on.lineage_id
    connection.execute(update(lineages).where(is_lineage).values(champion_snapshot_id=row.snapshot_id))
    details = {"from": on.champion_id, "to": row.snapshot_id, "seq": row.seq, "digest": row.digest}
    append(
        connection,
        chain=on.name,
        actor=approval.actor,
        action=AuditAction.champion_moved,
        subject=row.snapshot_id,
        payload=details | _about(approval, approval_id),
    )
    # The decision names the debt: it moves the champion once, and the goal is read back from the lineage.
    owe(connection, kind="champion", dedup_key=f"champion:{on.name}:{approval_id}", payload={"lineage": on.name})


def _brought_and_active(connection: Connection, row: Row[Any]) -> list[str]:
    """Edits that the snapshot's batch brought in and that the head still holds; a removal brought none."""
    if row.batch_id is None:
        return []
    return sorted(edit.edit_id for edit in brought_by(connection, row.snapshot_id) if edit.until_seq is None)


def _ids(connection: Connection, on: LockedLineage, *conditions: Any) -> Sequence[str]:
    query = select(snapshots.c.snapshot_id).where(snapshots.c.lineage_id == on.lineage_id, *conditions)
    return connection.execute(query.order_by(snapshots.c.seq)).scalars().all()


def _about(approval: Approval, approval_id: str) -> dict[str, Any]:
    return {
        "approval": approval_id,
        "decision": approval.decision.value,
        "reason": approval.reason,
        "channel": approval.channel.value,
        "is_claimed": approval.is_claimed,
    }
