"""Which edits a snapshot holds, and where the ledger rows of each are. Only reads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.postgresql import distinct_on

from pipeline.adapters.sql.tables import edit_requests, edit_rows, snapshot_edits, snapshots


def active_rows(connection: Connection, snapshot_id: str, *, keys: Collection[str] | None = None) -> Sequence[Row[Any]]:
    """The active edits of a snapshot, those brought in first at the front.

    Each is a row of `edit_requests` with `brought_by` and `snapshot_seq`, the newest snapshot at or below that has
    ledger rows of it (a reinstated edit has several), and these rows' file as `ledger`.

    Args:
        connection: an open transaction.
        snapshot_id: whose active set.
        keys: only edits of these facts; None for all.
    """
    held = snapshot_edits.c
    top = select(snapshots.c.seq).where(snapshots.c.snapshot_id == snapshot_id).scalar_subquery()
    query = (
        select(
            edit_requests,
            snapshots.c.seq.label("snapshot_seq"),
            snapshots.c.snapshot_id.label("brought_by"),
            edit_rows.c.rows.label("ledger"),
        )
        .join(snapshot_edits, held.edit_id == edit_requests.c.edit_id)
        .join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
        .join(snapshots, snapshots.c.snapshot_id == edit_rows.c.snapshot_id)
        .where(held.snapshot_id == snapshot_id, snapshots.c.seq <= top)
        .ext(distinct_on(edit_requests.c.edit_id))
        .order_by(edit_requests.c.edit_id, snapshots.c.seq.desc())
    )
    if keys is not None:
        query = query.where(edit_requests.c.conflict_key.in_(keys))
    return sorted(connection.execute(query).all(), key=_age)


def active_ids(connection: Connection, snapshot_id: str | None) -> set[str]:
    """Ids of the active edits of a snapshot; none of the base."""
    query = select(snapshot_edits.c.edit_id).where(snapshot_edits.c.snapshot_id == snapshot_id)
    return set(connection.execute(query).scalars())


def _age(row: Row[Any]) -> tuple[Any, ...]:
    return row.snapshot_seq, row.occurred_at, row.topic, row.partition, row.offset, row.edit_id
