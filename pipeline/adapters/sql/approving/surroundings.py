"""What a person has to know beside a snapshot itself: what goes live with it, what leaves, how the lineage went so far.

Each query reads a bounded number of rows, however many edits and snapshots there were before or wait.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from pipeline.adapters.sql.database.tables import edit_requests, edit_rows, gate_reports, snapshots
from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.services.registry.registry_ports import Surroundings, TrendPoint, Waiting

MOST = 20
"""Snapshots and edits that are named at most, of each kind."""
COUNTED = 10_000
"""What waits is counted up to here."""
TREND = 50
"""Snapshots that a lineage's plot goes back."""
EXAMPLES = 2
"""Edits that are named of each snapshot that goes live too."""


def surroundings_of(connection: Connection, row: Row[Any], *, champion_seq: int) -> Surroundings:
    """Return what is shown beside the snapshot of `row`.

    Args:
        connection: inside a transaction.
        row: the snapshot's.
        champion_seq: place of the champion; 0 for the base.
    """
    is_waiting = (
        (snapshots.c.lineage_id == row.lineage_id)
        & (snapshots.c.seq > champion_seq)
        & (snapshots.c.seq < row.seq)
        & (snapshots.c.status == SnapshotStatus.candidate)
    )
    waiting = connection.execute(select(snapshots).where(is_waiting).order_by(snapshots.c.seq.desc()).limit(MOST)).all()
    is_brought = snapshots.c.snapshot_id == edit_rows.c.snapshot_id
    is_gone = (edit_rows.c.lineage_id == row.lineage_id) & (edit_rows.c.until_seq == row.seq)
    gone = (
        select(edit_requests.c.request_id, edit_requests.c.prompt, edit_requests.c.target_new)
        .join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
        .where(is_gone, edit_rows.c.since_seq < row.seq)
        .order_by(edit_rows.c.place)
    )
    came_in = edit_requests.c.topic, edit_requests.c.partition, edit_requests.c.offset
    brought = (
        select(edit_requests.c.edit_id, *came_in)
        .join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
        .where(edit_rows.c.snapshot_id == row.snapshot_id)
    )
    return Surroundings(
        waiting=tuple(_waiting(connection, one) for one in reversed(waiting)),
        num_waiting=_count(connection, select(snapshots.c.seq).where(is_waiting)),
        num_waiting_edits=_count(connection, select(edit_rows.c.place).join(snapshots, is_brought).where(is_waiting)),
        gone=tuple(f"{one.request_id}: {one.prompt} {one.target_new}" for one in connection.execute(gone.limit(MOST))),
        trend=_trend(connection, row),
        origins={
            one.edit_id: f"{one.topic}, partition {one.partition}, offset {one.offset}"
            for one in connection.execute(brought)
        },
    )


def _count(connection: Connection, query: Select[Any]) -> int:
    return connection.scalar(select(func.count()).select_from(query.limit(COUNTED).subquery())) or 0


def _waiting(connection: Connection, row: Row[Any]) -> Waiting:
    is_its = edit_rows.c.snapshot_id == row.snapshot_id
    asked = (
        select(edit_requests.c.prompt, edit_requests.c.target_new)
        .join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
        .where(is_its)
        .order_by(edit_rows.c.place)
        .limit(EXAMPLES)
    )
    return Waiting(
        seq=row.seq,
        version=row.registry_version,
        num_edits=connection.scalar(select(func.count()).select_from(edit_rows).where(is_its)) or 0,
        edits=tuple(f"{one.prompt} {one.target_new}" for one in connection.execute(asked)),
    )


def _trend(connection: Connection, row: Row[Any]) -> tuple[TrendPoint, ...]:
    query = (
        select(snapshots.c.seq, gate_reports.c.report["rows"].label("rows"))
        .join(gate_reports, gate_reports.c.gate_report_id == snapshots.c.gate_report_id)
        .where(snapshots.c.lineage_id == row.lineage_id, snapshots.c.seq <= row.seq)
        .order_by(snapshots.c.seq.desc())
        .limit(TREND)
    )
    return tuple(
        TrendPoint(seq=one.seq, values={str(each["metric"]): each.get("value") for each in one.rows or ()})
        for one in reversed(connection.execute(query).all())
    )
