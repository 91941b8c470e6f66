"""Requests to take edits out of the head, as rows: how they come, are handed out, and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, literal, select, update

from pipeline.adapters.sql.active_sets import active_among
from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.locks import LockedLineage
from pipeline.adapters.sql.outbox import owe
from pipeline.adapters.sql.reports import insert_report
from pipeline.adapters.sql.tables import edit_requests, edit_rows, is_owed, removals
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput
from pipeline.domain.gates import GateReport
from pipeline.domain.lifecycle import EditStatus, RemovalStatus
from pipeline.domain.lineages import Removal

MAX_ATTEMPTS = 5
"""How often a removal is handed out before it fails."""


def request(
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


def requested(connection: Connection, on: LockedLineage) -> Sequence[Row[Any]]:
    """Removals that are owed, oldest first."""
    query = select(removals).where(removals.c.lineage_id == on.lineage_id, is_owed())
    return connection.execute(query.order_by(removals.c.requested_at, removals.c.removal_id)).all()


def next_due(connection: Connection, on: LockedLineage, *, actor: str) -> Removal | None:
    """The oldest removal that still has something to take out; those that have nothing left are done.

    Handing one out counts as an attempt. One that was handed out too often fails, so that what kills its workers
    cannot keep the lineage's edits waiting for ever.
    """
    for row in requested(connection, on):
        active = active_among(connection, row.edit_ids)
        edit_ids = tuple(edit_id for edit_id in row.edit_ids if edit_id in active)
        if edit_ids and row.attempts < MAX_ATTEMPTS:
            _count_attempt(connection, row.removal_id)
            return _removal_of(connection, on, row, edit_ids)
        if edit_ids:
            reason = f"none of its {row.attempts} attempts came to an end"
            fail(connection, on, _removal_of(connection, on, row, edit_ids), reason=reason, report=None, actor=actor)
            continue
        finish(connection, row.removal_id, status=RemovalStatus.done, outcome="its edits had left the head before")
    return None


def _count_attempt(connection: Connection, removal_id: str) -> None:
    counted = removals.c.attempts + 1
    connection.execute(update(removals).where(removals.c.removal_id == removal_id).values(attempts=counted))


def finish(connection: Connection, removal_id: str, *, status: RemovalStatus, outcome: str, **more: Any) -> None:
    """End a removal that is owed.

    Raises:
        InvalidInput: if it is not owed any more.
    """
    is_owed = (removals.c.removal_id == removal_id) & (removals.c.status == RemovalStatus.requested)
    values = {"status": status.value, "outcome": outcome, "finished_at": func.clock_timestamp(), **more}
    changed = connection.execute(update(removals).where(is_owed).values(values))
    if changed.rowcount != 1:
        raise InvalidInput(f"expected a removal that is still owed, got {removal_id}", removal_id=removal_id)


def fail(
    connection: Connection, on: LockedLineage, removal: Removal, *, reason: str, report: GateReport | None, actor: str
) -> None:
    """Record that a removal did not pass; the head stays."""
    report_id = insert_report(connection, on.lineage_id, report, snapshot_digest=None) if report else None
    finish(connection, removal.removal_id, status=RemovalStatus.failed, outcome=reason, gate_report_id=report_id)
    payload = {"edits": list(removal.edit_ids), "reason": reason} | ({"gate_report": report_id} if report_id else {})
    append(
        connection,
        chain=on.name,
        actor=actor,
        action=AuditAction.removal_failed,
        subject=removal.removal_id,
        payload=payload,
    )


def has_rejection_besides(connection: Connection, on: LockedLineage, removal_id: str | None) -> bool:
    """Whether the head still holds edits of a rejected snapshot that another removal will take out."""
    return any(row.rejected_snapshot_id and row.removal_id != removal_id for row in requested(connection, on))


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
    )
