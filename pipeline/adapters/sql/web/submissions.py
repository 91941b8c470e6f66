"""Corrections that came through the HTTP API, noted in PostgreSQL before they are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select, text

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.tables import edit_requests, lineages, status_is
from pipeline.adapters.sql.web.tables import submissions
from pipeline.domain.lifecycle import EditStatus
from pipeline.services.accepting import IdReused, KeyReused, Noted, Place, Wanted

_BY_IDS = text(
    """
    SELECT s.submission_id, e.edit_id IS NOT NULL AS is_edit, l.name AS lineage, asked.request_id,
           coalesce(s.occurred_at, e.occurred_at) AS occurred_at, s.body_digest, e.payload_digest
    FROM unnest(CAST(:names AS text[]), CAST(:ids AS text[])) AS asked (name, request_id)
    JOIN lineages l ON l.name = asked.name
    LEFT JOIN submissions s ON s.lineage_id = l.lineage_id AND s.request_id = asked.request_id
    LEFT JOIN edit_requests e ON e.lineage_id = l.lineage_id AND e.request_id = asked.request_id
    """
)
# One statement of a few lists, however many corrections come: a row of parameters each took most of a call's time.
_NOTE = text(
    """
    WITH made AS (
        INSERT INTO submissions
            (lineage_id, request_id, submitted_by, idempotency_key, call_digest, body_digest, occurred_at)
        SELECT l.lineage_id, fresh.request_id, :submitted_by, :key, :call_digest, fresh.body_digest, fresh.occurred_at
        FROM unnest(
            CAST(:names AS text[]), CAST(:ids AS text[]), CAST(:digests AS text[]), CAST(:times AS timestamptz[])
        ) AS fresh (name, request_id, body_digest, occurred_at)
        JOIN lineages l ON l.name = fresh.name
        ON CONFLICT (lineage_id, request_id) DO NOTHING
        RETURNING submission_id, lineage_id, request_id, occurred_at
    )
    SELECT made.submission_id::text, l.name AS lineage, made.request_id, made.occurred_at
    FROM made JOIN lineages l USING (lineage_id)
    """
)
_SENT = text(
    """
    UPDATE submissions s
    SET produced_at = clock_timestamp(), topic = p.topic, partition = p.partition, "offset" = p.place
    FROM unnest(
        CAST(:ids AS uuid[]), CAST(:topics AS text[]), CAST(:partitions AS integer[]), CAST(:offsets AS bigint[])
    ) AS p (submission_id, topic, partition, place)
    WHERE s.submission_id = p.submission_id
    """
)
_LOCK_KEY = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")


class SqlSubmissionStore:
    """What the HTTP API accepted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def lineage_names(self) -> Sequence[str]:
        """Return the names of all lineages, sorted."""
        with transaction(self._engine) as connection:
            return connection.execute(select(lineages.c.name).order_by(lineages.c.name)).scalars().all()

    def note(
        self, wanted: Sequence[Wanted], *, submitted_by: str, key: str | None, call_digest: str
    ) -> Sequence[Noted | IdReused]:
        """Note corrections, or find them again; one that differs from an earlier one of its id is none.

        Raises:
            KeyReused: if the idempotency key came before with another body.
        """
        with transaction(self._engine) as connection:
            if key is not None:
                _check_key(connection, submitted_by, key, call_digest)
            known = _known(connection, wanted)
            fresh = [one for one in wanted if known[one.lineage, one.request_id].submission_id is None]
            fresh = [one for one in fresh if _is_as_recorded(one, known[one.lineage, one.request_id])]
            made = _insert(connection, fresh, known, submitted_by=submitted_by, key=key, call_digest=call_digest)
            if len(made) < len(fresh):  # somebody else was faster
                known = _known(connection, wanted)
            return [_outcome(one, known[one.lineage, one.request_id], made) for one in wanted]

    def sent(self, places: Mapping[str, Place]) -> None:
        """Note where corrections lie in the topic, by the ids of their submissions."""
        values = {
            "ids": list(places),
            "topics": [place.topic for place in places.values()],
            "partitions": [place.partition for place in places.values()],
            "offsets": [place.offset for place in places.values()],
        }
        with transaction(self._engine) as connection:
            connection.execute(_SENT, values)

    def oldest_waiting(self, lineage: str) -> timedelta:
        """Return for how long the oldest correction of a lineage waits to be edited; zero if none waits."""
        columns = edit_requests.c
        asked = select(lineages.c.lineage_id).where(lineages.c.name == lineage).scalar_subquery()
        # One step down an index, however many wait: a minimum over a join would read them all.
        oldest = (
            select(columns.received_at)
            .where(columns.lineage_id == asked, status_is(EditStatus.received))
            .order_by(columns.received_at)
            .limit(1)
        )
        with transaction(self._engine) as connection:
            age: timedelta | None = connection.scalar(select(func.clock_timestamp() - oldest.scalar_subquery()))
        return age or timedelta()


def _check_key(connection: Connection, submitted_by: str, key: str, call_digest: str) -> None:
    """Let one call with a key note its corrections at a time, and refuse another body."""
    connection.execute(_LOCK_KEY, {"key": f"{submitted_by} {key}"})
    columns = submissions.c
    query = select(columns.call_digest).where(columns.submitted_by == submitted_by, columns.idempotency_key == key)
    before = connection.scalar(query.limit(1))
    if before not in (None, call_digest):
        raise KeyReused("Idempotency-Key: expected a new key, or the same body as the first time; got another body")


def _known(connection: Connection, wanted: Sequence[Wanted]) -> dict[tuple[str, str], Row[Any]]:
    asked = {"names": [one.lineage for one in wanted], "ids": [one.request_id for one in wanted]}
    return {(row.lineage, row.request_id): row for row in connection.execute(_BY_IDS, asked)}


def _is_as_recorded(one: Wanted, row: Row[Any]) -> bool:
    """Return whether no edit has the id, or one that says the same; such a one came over the topic."""
    if row.payload_digest is None:
        return True
    request = one.request if one.is_dated else replace(one.request, occurred_at=row.occurred_at)
    return bool(request.payload_digest == row.payload_digest)


def _insert(
    connection: Connection,
    fresh: Sequence[Wanted],
    known: Mapping[tuple[str, str], Row[Any]],
    *,
    submitted_by: str,
    key: str | None,
    call_digest: str,
) -> dict[tuple[str, str], Row[Any]]:
    if not fresh:
        return {}
    values = {
        "submitted_by": submitted_by,
        "key": key,
        "call_digest": call_digest,
        "names": [one.lineage for one in fresh],
        "ids": [one.request_id for one in fresh],
        "digests": [one.body_digest for one in fresh],
        "times": [_occurred_at(one, known[one.lineage, one.request_id]) for one in fresh],
    }
    return {(row.lineage, row.request_id): row for row in connection.execute(_NOTE, values)}


def _occurred_at(one: Wanted, row: Row[Any]) -> Any:
    return one.request.occurred_at if one.is_dated or row.occurred_at is None else row.occurred_at


def _outcome(one: Wanted, row: Row[Any], made: Mapping[tuple[str, str], Row[Any]]) -> Noted | IdReused:
    new = made.get((one.lineage, one.request_id))
    if new is not None:
        return Noted(
            submission_id=new.submission_id,
            occurred_at=new.occurred_at,
            is_taken_in=row.is_edit,
            is_new=not row.is_edit,
        )
    if row.submission_id is None or row.body_digest != one.body_digest:
        return IdReused(
            f"request_id: expected a new id or the same correction, got {one.request_id!r:.120} with another correction"
        )
    return Noted(
        submission_id=str(row.submission_id), occurred_at=row.occurred_at, is_taken_in=row.is_edit, is_new=False
    )
