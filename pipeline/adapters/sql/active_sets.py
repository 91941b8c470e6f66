"""Which edits a snapshot holds: intervals of `edit_rows`, each from the seq that brought an edit until one without it.

Nothing here reads more rows than it is asked about, but `rows_at`, which says what a ledger is loaded from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    any_,
    bindparam,
    cast,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.tables import edit_requests, edit_rows, lineages, status_is
from pipeline.domain.batches import RETAINED, SIBLINGS, retention_draws
from pipeline.domain.lifecycle import EditStatus

# An index probe a stratum: the first active place at or above the draw, else the nearest below it. What strata lack
# whose edits have all gone is filled up with the newest edits, so that the sample is never smaller than it could be.
_SAMPLE = text(
    """
    WITH drawn AS (
        SELECT found.edit_id, found.place
        FROM unnest(CAST(:lows AS integer[]), CAST(:draws AS integer[]), CAST(:highs AS integer[])) d (low, draw, high)
        CROSS JOIN LATERAL (
            (SELECT edit_id, place, 1 AS choice FROM edit_rows
              WHERE lineage_id = :lineage_id AND until_seq IS NULL AND place BETWEEN draw AND high
                AND edit_id <> ALL (CAST(:removed AS uuid[]))
              ORDER BY place LIMIT 1)
            UNION ALL
            (SELECT edit_id, place, 2 FROM edit_rows
              WHERE lineage_id = :lineage_id AND until_seq IS NULL AND place >= low AND place < draw
                AND edit_id <> ALL (CAST(:removed AS uuid[]))
              ORDER BY place DESC LIMIT 1)
            ORDER BY choice LIMIT 1
        ) found
    ), newest AS (
        SELECT edit_id, place FROM edit_rows
        WHERE lineage_id = :lineage_id AND until_seq IS NULL AND edit_id <> ALL (CAST(:removed AS uuid[]))
          AND edit_id NOT IN (SELECT edit_id FROM drawn)
        ORDER BY place DESC LIMIT :size - (SELECT count(*) FROM drawn)
    )
    SELECT edit_id::text FROM (SELECT * FROM drawn UNION ALL SELECT * FROM newest) chosen ORDER BY place
    """
)

# An index probe a name, however many edits there are of it.
_EDITED = text(
    """
    SELECT name FROM unnest(CAST(:names AS text[])) WITH ORDINALITY n (name, place)
    WHERE EXISTS (
        SELECT FROM edit_requests
        WHERE lineage_id = :lineage_id AND lower(subject) = name AND status = 'snapshotted'
    )
    ORDER BY place
    """
)

# Of each relation only the newest few are looked at: a fact that is corrected again and again costs no more.
_RELATED = text(
    """
    SELECT asked.relation, array_agg(found.subject ORDER BY found.received_at DESC, found.edit_id DESC) AS subjects
    FROM unnest(CAST(:relations AS text[])) asked (relation)
    CROSS JOIN LATERAL (
        SELECT subject, received_at, edit_id FROM edit_requests
        WHERE lineage_id = :lineage_id AND lower(relation) = lower(asked.relation) AND subject IS NOT NULL
          AND status IN ('rejected', 'superseded', 'reverted', 'dead')
        ORDER BY received_at DESC, edit_id DESC LIMIT :most
    ) found
    WHERE NOT EXISTS (
        SELECT FROM edit_requests held
        WHERE held.lineage_id = :lineage_id AND lower(held.subject) = lower(found.subject)
          AND held.status = 'snapshotted'
    )
    GROUP BY asked.relation
    """
)
# Of each subject only the newest few are looked at, however many facts are held of it.
_SIBLINGS = text(
    """
    SELECT found.edit_id::text FROM (
        SELECT DISTINCT lower(subject) AS name FROM edit_requests
        WHERE edit_id = ANY (CAST(:changed AS uuid[])) AND subject IS NOT NULL
    ) about
    CROSS JOIN LATERAL (
        SELECT edit_id, received_at FROM edit_requests
        WHERE lineage_id = :lineage_id AND lower(subject) = about.name AND status = 'snapshotted'
          AND edit_id <> ALL (CAST(:changed AS uuid[]))
        ORDER BY received_at DESC, edit_id DESC LIMIT :of_subject
    ) found
    ORDER BY found.received_at DESC, found.edit_id DESC LIMIT :most
    """
)
RELATED = 8
"""Earlier requests of a relation whose subjects are looked at, at most."""


def rows_at(connection: Connection, lineage_id: str, seq: int) -> Sequence[Row[Any]]:
    """(edit_id, rows, made_seq) of every edit that the snapshot at a seq holds, in the order of their rows."""
    made_seq = func.coalesce(edit_rows.c.remade_seq, edit_rows.c.since_seq).label("made_seq")
    query: Select[Any] = select(edit_rows.c.edit_id, edit_rows.c.rows, made_seq).where(
        edit_rows.c.lineage_id == lineage_id,
        edit_rows.c.since_seq <= seq,
        or_(edit_rows.c.until_seq.is_(None), edit_rows.c.until_seq > seq),
    )
    return connection.execute(query.order_by(edit_rows.c.place)).all()


def active_among(connection: Connection, edit_ids: Collection[str]) -> set[str]:
    """Return those of some edits that the head of their lineage holds."""
    query = select(edit_rows.c.edit_id).where(_is_among(edit_ids), edit_rows.c.until_seq.is_(None))
    return set(connection.execute(query).scalars()) if edit_ids else set()


def brought_by(connection: Connection, snapshot_id: str) -> Sequence[Row[Any]]:
    """Return rows of `edit_requests` that a snapshot brought in, with `until_seq`, in the order of their places."""
    query = select(edit_requests, edit_rows.c.until_seq).join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
    return connection.execute(query.where(edit_rows.c.snapshot_id == snapshot_id).order_by(edit_rows.c.place)).all()


def held_by_head(connection: Connection, lineage_id: str) -> Sequence[Row[Any]]:
    """Return rows of `edit_requests` that the head holds, in the order of their places."""
    query = select(edit_requests).join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
    held = query.where(edit_rows.c.lineage_id == lineage_id, edit_rows.c.until_seq.is_(None))
    return connection.execute(held.order_by(edit_rows.c.place)).all()


def holding(connection: Connection, keys: Collection[str]) -> Sequence[Row[Any]]:
    """Return rows of `edit_requests` that heads hold of these facts; a key names its lineage.

    There is one a key, but where revision 0010 made one key of two that had been told apart.
    """
    query = select(edit_requests).where(edit_requests.c.conflict_key.in_(keys), status_is(EditStatus.snapshotted))
    return connection.execute(query).all() if keys else ()


def edited_names(connection: Connection, lineage_id: str, names: Sequence[str]) -> Sequence[str]:
    """Return those of some names, in lower case, that edits of the head are about, in their order."""
    return (
        connection.execute(_EDITED, {"lineage_id": lineage_id, "names": list(names)}).scalars().all() if names else ()
    )


def related_subjects(
    connection: Connection, lineage_id: str, relations: Collection[str]
) -> Mapping[str, tuple[str, ...]]:
    """Return subjects of the newest requests of some relations that ended without an active edit, by relation.

    None of them has an active edit of any relation. Relations are compared without case.
    """
    asked = {"lineage_id": lineage_id, "relations": sorted(relations), "most": RELATED}
    rows = connection.execute(_RELATED, asked).all() if relations else ()
    return {row.relation: tuple(dict.fromkeys(row.subjects)) for row in rows}


def siblings(connection: Connection, lineage_id: str, changed_ids: Sequence[str], *, limit: int) -> Sequence[Row[Any]]:
    """Return rows of `edit_requests` that the head holds of the subjects of some edits, in the order of their places.

    Neither those edits are among them nor, of a subject, more than the newest `SIBLINGS`; at most `limit` in all.
    """
    asked = {"lineage_id": lineage_id, "changed": list(changed_ids), "of_subject": SIBLINGS, "most": limit}
    found = connection.execute(_SIBLINGS, asked).scalars().all() if changed_ids else ()
    query = select(edit_requests).join(edit_rows, edit_rows.c.edit_id == edit_requests.c.edit_id)
    held = query.where(_is_among(found), edit_rows.c.until_seq.is_(None))
    return connection.execute(held.order_by(edit_rows.c.place)).all() if found else ()


def retained_ids(connection: Connection, lineage_id: str, *, seed: str, removed_ids: Sequence[str]) -> Sequence[str]:
    """Active edits to measure again, stratified by age and drawn by `seed`, oldest first; see `retention_draws`."""
    num_places = select(lineages.c.num_activations).where(lineages.c.lineage_id == lineage_id)
    draws = retention_draws(connection.execute(num_places).scalar_one(), seed=seed)
    lows, middles, highs = ([draw[place] for draw in draws] for place in range(3))
    asked = {"lows": lows, "draws": middles, "highs": highs, "size": RETAINED}
    asked |= {"lineage_id": lineage_id, "removed": list(removed_ids)}
    return connection.execute(_SAMPLE, asked).scalars().all()


def end_activations(connection: Connection, edit_ids: Collection[str], *, seq: int) -> int:
    """Let edits leave the head with the snapshot at a seq; returns how many did."""
    leave = update(edit_rows).where(_is_among(edit_ids), edit_rows.c.until_seq.is_(None))
    return connection.execute(leave.values(until_seq=seq)).rowcount if edit_ids else 0


def begin_activations(
    connection: Connection,
    on: LockedLineage,
    edit_ids: Sequence[str],
    *,
    remade_ids: Sequence[str],
    snapshot_id: str,
    seq: int,
    rows: Any,
) -> int:
    """Give places to what a snapshot makes: active edits that it makes again, and those that enter with it; in order.

    Args:
        connection: a transaction.
        on: the lineage, with the places that were given out before.
        edit_ids: edits that enter; none of them is active.
        remade_ids: active edits. They stay in the sets that they were in, with the new rows.
        snapshot_id: the snapshot.
        seq: its place in the history.
        rows: the file of all their ledger rows, as JSON.

    Returns:
        The newest place.
    """
    first, newest = on.num_activations + 1, on.num_activations + len(remade_ids) + len(edit_ids)
    moving = [{"remade_id": edit_id, "to_place": place} for place, edit_id in enumerate(remade_ids, start=first)]
    if moving:
        again = update(edit_rows).where(edit_rows.c.edit_id == bindparam("remade_id"), edit_rows.c.until_seq.is_(None))
        connection.execute(again.values(place=bindparam("to_place"), rows=rows, remade_seq=seq), moving)
    common = {"lineage_id": on.lineage_id, "snapshot_id": snapshot_id, "since_seq": seq, "rows": rows}
    places = enumerate(edit_ids, start=first + len(remade_ids))
    entering = [common | {"edit_id": edit_id, "place": place} for place, edit_id in places]
    if entering:
        connection.execute(insert(edit_rows), entering)
    counted = update(lineages).where(lineages.c.lineage_id == on.lineage_id)
    connection.execute(counted.values(num_activations=newest))
    return newest


def move_rows(connection: Connection, edit_ids: Collection[str], rows: Any) -> None:
    """Say that the ledger rows of active edits are in another file now; sets of the past that hold them follow."""
    moved = update(edit_rows).where(_is_among(edit_ids), edit_rows.c.until_seq.is_(None))
    if edit_ids:
        connection.execute(moved.values(rows=rows))


def _is_among(edit_ids: Collection[str]) -> ColumnElement[bool]:
    """Return the condition that a row is of one of some edits, as one parameter: a statement takes 65,535 at most."""
    return edit_rows.c.edit_id == any_(cast(list(edit_ids), ARRAY(UUID(as_uuid=False))))


def first_seq(connection: Connection, edit_id: str) -> int | None:
    """Return the first snapshot that held an edit; None if none did."""
    query = select(func.min(edit_rows.c.since_seq)).where(edit_rows.c.edit_id == edit_id)
    seq: int | None = connection.scalar(query)
    return seq
