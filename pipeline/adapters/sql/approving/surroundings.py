"""What a person has to know beside a snapshot itself: what goes live with it, what leaves, how the lineage went so far.

Each query reads a bounded number of rows, however many edits and snapshots there were before or wait.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, text

from pipeline.adapters.sql.approving.going_live import goes_live_with, is_brought_and_held
from pipeline.adapters.sql.approving.resolving import work_words
from pipeline.adapters.sql.database.tables import edit_requests, edit_rows, gate_reports, removals, snapshots
from pipeline.domain.review.approvals import shown_actor
from pipeline.services.registry.registry_ports import Surroundings, TrendPoint, Waiting

MOST = 20
"""Snapshots and edits that are named at most, of each kind."""
COUNTED = 10_000
"""What waits is counted up to here."""
TREND = 50
"""Snapshots that a lineage's plot goes back."""
EXAMPLES = 2
"""Edits that are named of each snapshot that goes live too."""
# One statement for all of them: a page costs the same however many wait. Which go live is said as in `goes_live_with`.
_WAITING = text(
    """
    SELECT s.seq, s.registry_version, s.status = 'rolled_back' AS is_rolled_back,
        (
            SELECT count(*) FROM edit_rows r
            WHERE r.snapshot_id = s.snapshot_id AND (r.until_seq IS NULL OR r.until_seq > :seq)
        ) AS num_edits,
        ARRAY(
            SELECT e.prompt || ' ' || e.target_new FROM edit_rows r JOIN edit_requests e USING (edit_id)
            WHERE r.snapshot_id = s.snapshot_id AND (r.until_seq IS NULL OR r.until_seq > :seq)
            ORDER BY r.place LIMIT :examples
        ) AS edits
    FROM snapshots s
    WHERE s.lineage_id = :lineage_id AND s.seq > :champion_seq AND s.seq < :seq AND (
        s.status IN ('candidate', 'rolled_back') OR EXISTS (
            SELECT 1 FROM edit_rows r
            WHERE r.snapshot_id = s.snapshot_id AND (r.until_seq IS NULL OR r.until_seq > :seq)
        )
    )
    ORDER BY s.seq DESC LIMIT :most
    """
)


def surroundings_of(connection: Connection, row: Row[Any], *, champion_seq: int) -> Surroundings:
    """Return what is shown beside the snapshot of `row`: what moves with it, the lineage's trend, where edits came in.

    Args:
        connection: inside a transaction.
        row: the snapshot's.
        champion_seq: place of the champion; 0 for the base.
    """
    came_in = edit_requests.c.topic, edit_requests.c.partition, edit_requests.c.offset
    brought = (
        select(edit_requests.c.edit_id, *came_in)
        .join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
        .where(edit_rows.c.snapshot_id == row.snapshot_id)
    )
    return replace(
        moves_with(connection, row, champion_seq=champion_seq),
        trend=_trend(connection, row),
        origins={
            one.edit_id: f"{one.topic}, partition {one.partition}, offset {one.offset}"
            for one in connection.execute(brought)
        },
    )


def moves_with(connection: Connection, row: Row[Any], *, champion_seq: int) -> Surroundings:
    """Return what goes live with the snapshot of `row` and what left with it, without trend and origins.

    Args:
        connection: inside a transaction.
        row: the snapshot's.
        champion_seq: place of the champion; 0 for the base.
    """
    is_between = (
        (snapshots.c.lineage_id == row.lineage_id) & (snapshots.c.seq > champion_seq) & (snapshots.c.seq < row.seq)
    )
    held = select(edit_rows.c.place).join(snapshots, is_brought_and_held(row.seq))
    is_gone = (edit_rows.c.lineage_id == row.lineage_id) & (edit_rows.c.until_seq == row.seq)
    gone = (
        select(edit_requests.c.request_id, edit_requests.c.prompt, edit_requests.c.target_new)
        .join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
        .where(is_gone, edit_rows.c.since_seq < row.seq)
        .order_by(edit_rows.c.place)
    )
    told = select(gate_reports.c.report["measurements"]["remade"]).where(
        gate_reports.c.gate_report_id == row.gate_report_id
    )
    remade_ids = (connection.scalar(told) or [])[:MOST]
    remade = select(edit_requests.c.request_id, edit_requests.c.prompt, edit_requests.c.target_new).where(
        edit_requests.c.edit_id.in_(remade_ids)
    )
    return Surroundings(
        waiting=_waiting(connection, row, champion_seq),
        num_waiting=_count(connection, select(snapshots.c.seq).where(is_between, goes_live_with(row.seq))),
        num_waiting_edits=_count(connection, held.where(is_between)),
        gone=_facts(connection, gone.limit(MOST)),
        remade=_facts(connection, remade.order_by(edit_requests.c.edit_id)) if remade_ids else (),
        work=_work(connection, row) if row.batch_id is None else "",
    )


def _facts(connection: Connection, query: Select[Any]) -> tuple[str, ...]:
    return tuple(f"{one.request_id}: {one.prompt} {one.target_new}" for one in connection.execute(query))


def _work(connection: Connection, row: Row[Any]) -> str:
    """Return what a snapshot without a batch is, in a sentence; empty for one of before, whose removal is not known."""
    is_its = (removals.c.lineage_id == row.lineage_id) & (removals.c.snapshot_id == row.snapshot_id)
    asked = connection.execute(select(removals).where(is_its)).one_or_none()
    if asked is None:
        return ""
    why = f": {asked.reason}" if asked.reason else ""
    return f"{work_words(connection, asked)}, as {shown_actor(asked.actor)} asked{why}"


def _count(connection: Connection, query: Select[Any]) -> int:
    return connection.scalar(select(func.count()).select_from(query.limit(COUNTED).subquery())) or 0


def _waiting(connection: Connection, row: Row[Any], champion_seq: int) -> tuple[Waiting, ...]:
    between = {"lineage_id": row.lineage_id, "champion_seq": champion_seq, "seq": row.seq}
    found = connection.execute(_WAITING, between | {"most": MOST, "examples": EXAMPLES})
    return tuple(
        Waiting(
            seq=one.seq,
            version=one.registry_version,
            num_edits=one.num_edits,
            edits=tuple(one.edits),
            is_rolled_back=one.is_rolled_back,
        )
        for one in reversed(found.all())
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
