"""Which edits are tried together, after a batch of them has come to no verdict on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.dialects.postgresql import distinct_on

from pipeline.adapters.sql.database.tables import batch_edits, edit_batches
from pipeline.adapters.sql.statuses import SUSPECTED, UNDECIDED
from pipeline.domain.batches import most_companions


@dataclass(frozen=True, kw_only=True, slots=True)
class _Undecided:
    """The last batch of an edit, which came to no verdict on it, and how many came back from it in the same way."""

    ordinal: int
    outcome: str
    num_tried: int


def companions(connection: Connection, front: Sequence[Row[Any]], *, limit: int) -> tuple[Sequence[Row[Any]], int]:
    """Return the edits of the front that may be tried together, and how many of such may be.

    Those that were tried together without a verdict, or that others passed without, stay among themselves, at most
    half as many as then: after O(log n) batches one is alone. Who was tried longest ago is next, so that nobody dies
    before all others had their turn. Fresh edits share nothing of what befalls them.
    """
    undecided = _undecided(connection, [row.edit_id for row in front if row.reason is not None])
    if not front or front[0].edit_id not in undecided:
        return [row for row in front if row.edit_id not in undecided], limit
    of_last = min((undecided[row.edit_id] for row in front if row.edit_id in undecided), key=lambda one: one.ordinal)
    limit = min(limit, most_companions(of_last.num_tried))
    return [row for row in front if undecided.get(row.edit_id) == of_last][:limit], limit


def _undecided(connection: Connection, edit_ids: Sequence[str]) -> dict[str, _Undecided]:
    """Return the last batch of each of those edits that came back from it undecided or suspected.

    Args:
        connection: a transaction.
        edit_ids: edits with a reason; others have come back from nothing.
    """
    if not edit_ids:
        return {}
    last = (
        select(batch_edits.c.edit_id, batch_edits.c.batch_id, batch_edits.c.outcome, edit_batches.c.ordinal)
        .join(edit_batches, edit_batches.c.batch_id == batch_edits.c.batch_id)
        .where(batch_edits.c.edit_id.in_(edit_ids))
        .ext(distinct_on(batch_edits.c.edit_id))
        .order_by(batch_edits.c.edit_id, edit_batches.c.ordinal.desc())
        .subquery()
    )
    beside = batch_edits.alias()
    query = (
        select(last.c.edit_id, last.c.ordinal, last.c.outcome, func.count().label("num_tried"))
        .join(beside, (beside.c.batch_id == last.c.batch_id) & (beside.c.outcome == last.c.outcome))
        .where(last.c.outcome.in_([UNDECIDED, SUSPECTED]))
        .group_by(last.c.edit_id, last.c.ordinal, last.c.outcome)
    )
    found = connection.execute(query)
    return {row.edit_id: _Undecided(ordinal=row.ordinal, outcome=row.outcome, num_tried=row.num_tried) for row in found}
