"""What follows from a decision that was not refused, and the removals of edits that some decisions owe.

Runs inside the transaction of its caller, on locked rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, literal, select, update

from pipeline.adapters.sql.active_sets import active_among, brought_by
from pipeline.adapters.sql.approving.going_live import owe_word_of_live_edits
from pipeline.adapters.sql.approving.holds import (
    ROLLED_BACK,
    hold_after_failed_undo,
    hold_after_roll_back,
    lift,
)
from pipeline.adapters.sql.approving.resolving import first_rolled_back, owe_resolving, undo_of
from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.rows import insert_report
from pipeline.adapters.sql.database.tables import edit_requests, edit_rows, is_owed, lineages, removals, snapshots
from pipeline.adapters.sql.outbox import owe
from pipeline.adapters.sql.statuses import move_snapshots
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput
from pipeline.domain.gates import GateReport
from pipeline.domain.ledger.upkeep import Resolving
from pipeline.domain.lifecycle import EditStatus, RemovalStatus, SnapshotStatus
from pipeline.domain.lineages import Removal
from pipeline.domain.review.approvals import Approval, Decision

MAX_ATTEMPTS = 5
"""How often a removal is handed out before it fails."""


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
    about_it = about(approval, approval_id)
    approved = SnapshotStatus.approved
    move_snapshots(connection, [*built_on, row.snapshot_id], approved, on=on, actor=approval.actor, about=about_it)
    _move_champion(connection, on, row, approval, approval_id)
    lift(connection, on, ROLLED_BACK, because=f"snapshot {row.seq} was approved", actor=approval.actor)


def _reject(connection: Connection, on: LockedLineage, row: Row[Any], approval: Approval, approval_id: str) -> None:
    """Reject a candidate, retire what stands on it, and owe a head without the edits it brought."""
    about_it = about(approval, approval_id)
    rejected, retired = SnapshotStatus.rejected, SnapshotStatus.retired
    move_snapshots(connection, [row.snapshot_id], rejected, on=on, actor=approval.actor, about=about_it)
    above = _ids(connection, on, snapshots.c.seq > row.seq, snapshots.c.status == SnapshotStatus.candidate)
    move_snapshots(connection, above, retired, on=on, actor=approval.actor, about=about_it | {"stands_on": row.seq})
    edit_ids, undo = _brought_and_active(connection, row), undo_of(connection, row)
    reason = f"snapshot {row.seq} was rejected" + (f": {approval.reason}" if approval.reason else "")
    if undo is not None:
        owe_resolving(connection, on, undo, actor=approval.actor, reason=reason, rejected_snapshot_id=row.snapshot_id)
    if edit_ids:
        request_removal(
            connection, on, edit_ids, rejected_snapshot_id=row.snapshot_id, actor=approval.actor, reason=reason
        )


def _roll_back(connection: Connection, on: LockedLineage, row: Row[Any], approval: Approval, approval_id: str) -> None:
    """Make an approved ancestor the champion at once, and hold the lineage."""
    above = _ids(connection, on, snapshots.c.seq > row.seq, snapshots.c.status == SnapshotStatus.approved)
    about_it = about(approval, approval_id) | {"rolled_back_to": row.seq}
    move_snapshots(connection, above, SnapshotStatus.rolled_back, on=on, actor=approval.actor, about=about_it)
    _move_champion(connection, on, row, approval, approval_id)
    anew = first_rolled_back(connection, on.lineage_id, above_seq=row.seq)
    hold_after_roll_back(connection, on, seq=row.seq, reason=approval.reason, actor=approval.actor, anew=anew)


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
        payload=details | about(approval, approval_id),
    )
    owe_word_of_live_edits(connection, on, seq=row.seq, approval_id=approval_id)
    # The decision names the debt: it moves the champion once, and the goal is read back from the lineage.
    owe(connection, kind="champion", dedup_key=f"champion:{on.name}:{approval_id}", payload={"lineage": on.name})


def _brought_and_active(connection: Connection, row: Row[Any]) -> list[str]:
    """Return edits that the snapshot's batch brought in and that the head still holds; a removal brought none."""
    if row.batch_id is None:
        return []
    return sorted(edit.edit_id for edit in brought_by(connection, row.snapshot_id) if edit.until_seq is None)


def _ids(connection: Connection, on: LockedLineage, *conditions: Any) -> Sequence[str]:
    query = select(snapshots.c.snapshot_id).where(snapshots.c.lineage_id == on.lineage_id, *conditions)
    return connection.execute(query.order_by(snapshots.c.seq)).scalars().all()


def about(approval: Approval, approval_id: str) -> dict[str, Any]:
    """Return what an audit line says of the decision that it follows from."""
    return {
        "approval": approval_id,
        "decision": approval.decision.value,
        "reason": approval.reason,
        "channel": approval.channel.value,
        "is_claimed": approval.is_claimed,
    }


def request_removal(
    connection: Connection,
    on: LockedLineage,
    edit_ids: Sequence[str],
    *,
    rejected_snapshot_id: str | None,
    actor: str,
    reason: str,
) -> str:
    """Owe a removal, audit it and ring; returns its id.

    When a snapshot was rejected, the edits that its edits had displaced are to come back.
    """
    row = {
        "lineage_id": on.lineage_id,
        "edit_ids": list(edit_ids),
        "reinstated_ids": _displaced_by(connection, edit_ids) if rejected_snapshot_id else [],
        "rejected_snapshot_id": rejected_snapshot_id,
        "actor": actor,
        "reason": reason,
    }
    removal_id: str = connection.execute(insert(removals).values(row).returning(removals.c.removal_id)).scalar_one()
    payload = {"edits": row["edit_ids"], "reinstated": row["reinstated_ids"], "reason": reason}
    append(
        connection,
        chain=on.name,
        actor=actor,
        action=AuditAction.removal_requested,
        subject=removal_id,
        payload=payload | ({"rejected_snapshot": rejected_snapshot_id} if rejected_snapshot_id else {}),
    )
    owe(connection, kind="doorbell", dedup_key=f"doorbell:removal:{removal_id}", payload=on.doorbell)
    return removal_id


def owed_removals(connection: Connection, on: LockedLineage) -> Sequence[Row[Any]]:
    """Return removals that are owed, oldest first."""
    query = select(removals).where(removals.c.lineage_id == on.lineage_id, is_owed())
    return connection.execute(query.order_by(removals.c.requested_at, removals.c.removal_id)).all()


def next_removal(connection: Connection, on: LockedLineage, *, actor: str) -> Removal | None:
    """Return the oldest removal that still has something to take out, and end those that have nothing left.

    Handing one out counts as an attempt. One that was handed out too often fails, so that what kills its workers
    cannot keep the lineage's edits waiting for ever.
    """
    for row in _without_overtaken(connection, on, owed_removals(connection, on), actor=actor):
        active = active_among(connection, row.edit_ids)
        edit_ids = tuple(edit_id for edit_id in row.edit_ids if edit_id in active)
        has_work = bool(edit_ids) or row.resolving is not None
        if has_work and row.attempts < MAX_ATTEMPTS:
            _count_attempt(connection, row.removal_id)
            return _removal_of(connection, on, row, edit_ids)
        if has_work:
            last = f"; the last: {row.outcome}" if row.outcome else ""
            reason = f"none of its {row.attempts} attempts came to an end{last}"
            fail_removal(
                connection, on, _removal_of(connection, on, row, edit_ids), reason=reason, report=None, actor=actor
            )
            continue
        finish_removal(
            connection, row.removal_id, status=RemovalStatus.done, outcome="its edits had left the head before"
        )
    return None


def _without_overtaken(
    connection: Connection, on: LockedLineage, owed: Sequence[Row[Any]], *, actor: str
) -> Sequence[Row[Any]]:
    """Return removals without those that what brings the oldest ledger back would undo; those fail, and say so."""
    undone = {row.removal_id: Resolving.from_stored(row.resolving).undoes for row in owed if row.resolving is not None}
    undoes = [snapshot_id for snapshot_id in undone.values() if snapshot_id is not None]
    if not undoes:
        return owed
    of_them = select(snapshots.c.snapshot_id, snapshots.c.seq).where(snapshots.c.snapshot_id.in_(undoes))
    first = connection.execute(of_them.order_by(snapshots.c.seq).limit(1)).one()
    overtaken = {one for one, snapshot_id in undone.items() if snapshot_id != first.snapshot_id}
    reason = f"the ledger goes back first to what it was before snapshot {first.seq}; ask again after that"
    for row in owed:
        if row.removal_id in overtaken:
            _fail(connection, on, _removal_of(connection, on, row, ()), reason=reason, report=None, actor=actor)
    return [row for row in owed if row.removal_id not in overtaken]


def _count_attempt(connection: Connection, removal_id: str) -> None:
    counted = removals.c.attempts + 1
    connection.execute(update(removals).where(removals.c.removal_id == removal_id).values(attempts=counted))


def put_off_removal(connection: Connection, removal_id: str, *, reason: str, is_attempt: bool) -> None:
    """Note why a removal that was handed out came to no end; an attempt that was not its fault does not count."""
    is_owed = (removals.c.removal_id == removal_id) & (removals.c.status == RemovalStatus.requested)
    attempts = removals.c.attempts - (0 if is_attempt else 1)
    connection.execute(update(removals).where(is_owed).values(outcome=reason, attempts=func.greatest(attempts, 0)))


def finish_removal(
    connection: Connection, removal_id: str, *, status: RemovalStatus, outcome: str, **more: Any
) -> None:
    """End a removal that is owed.

    Raises:
        InvalidInput: if it is not owed any more.
    """
    is_owed = (removals.c.removal_id == removal_id) & (removals.c.status == RemovalStatus.requested)
    values = {"status": status.value, "outcome": outcome, "finished_at": func.clock_timestamp(), **more}
    changed = connection.execute(update(removals).where(is_owed).values(values))
    if changed.rowcount != 1:
        raise InvalidInput(f"expected a removal that is still owed, got {removal_id}", removal_id=removal_id)


def fail_removal(
    connection: Connection, on: LockedLineage, removal: Removal, *, reason: str, report: GateReport | None, actor: str
) -> None:
    """Record that a removal did not pass; the head stays.

    Where it was to bring back the ledger before a rejected snapshot, the lineage is held: a person has to choose.
    """
    _fail(connection, on, removal, reason=reason, report=report, actor=actor)
    if removal.is_undo and removal.rejected_snapshot_id is not None:
        rejected = snapshots.c.snapshot_id == removal.rejected_snapshot_id
        seq = connection.scalar(select(snapshots.c.seq).where(rejected))
        hold_after_failed_undo(connection, on, seq=seq or 0, reason=reason, actor=actor)


def _fail(
    connection: Connection, on: LockedLineage, removal: Removal, *, reason: str, report: GateReport | None, actor: str
) -> None:
    report_id = insert_report(connection, on.lineage_id, report, snapshot_digest=None) if report else None
    finish_removal(
        connection, removal.removal_id, status=RemovalStatus.failed, outcome=reason, gate_report_id=report_id
    )
    payload = {"edits": list(removal.edit_ids), "reason": reason} | ({"gate_report": report_id} if report_id else {})
    append(
        connection,
        chain=on.name,
        actor=actor,
        action=AuditAction.removal_failed if removal.resolving is None else AuditAction.rekeying_failed,
        subject=removal.removal_id,
        payload=payload,
    )


def has_rejection_besides(connection: Connection, on: LockedLineage) -> bool:
    """Return whether the head still holds what a rejected snapshot brought and a removal that is owed takes out."""
    return any(row.rejected_snapshot_id for row in owed_removals(connection, on))


def _displaced_by(connection: Connection, edit_ids: Sequence[str]) -> list[str]:
    """Superseded edits that had been in a snapshot until one of these took their place."""
    was_active = select(literal(1)).where(edit_rows.c.edit_id == edit_requests.c.edit_id).exists()
    query = select(edit_requests.c.edit_id).where(
        edit_requests.c.superseded_by.in_(edit_ids), edit_requests.c.status == EditStatus.superseded, was_active
    )
    return list(connection.execute(query.order_by(edit_requests.c.edit_id)).scalars())


def _removal_of(connection: Connection, on: LockedLineage, row: Row[Any], edit_ids: tuple[str, ...]) -> Removal:
    still = set(_displaced_by(connection, edit_ids))
    return Removal(
        removal_id=row.removal_id,
        lineage=on.name,
        edit_ids=edit_ids,
        reinstated_ids=tuple(edit_id for edit_id in row.reinstated_ids if edit_id in still),
        rejected_snapshot_id=row.rejected_snapshot_id,
        actor=row.actor,
        reason=row.reason,
        resolving=Resolving.from_stored(row.resolving) if row.resolving is not None else None,
    )
