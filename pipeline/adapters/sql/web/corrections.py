"""Where corrections stand, for whoever sent them: found by any of their ids, or a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, text

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.rows import is_uuid
from pipeline.domain.errors import InvalidInput, UnknownRecord
from pipeline.domain.lifecycle import EditStatus

_BY_SUBMISSION = text(
    """
    SELECT s.submission_id, e.edit_id, l.name AS lineage, s.submitted_by
    FROM submissions s JOIN lineages l USING (lineage_id)
    LEFT JOIN edit_requests e ON e.lineage_id = s.lineage_id AND e.request_id = s.request_id
        AND e.submitted_by = s.submitted_by AND e.occurred_at = s.occurred_at
    WHERE s.submission_id = CAST(:ref AS uuid)
    """
)
_BY_EDIT = text(
    """
    SELECT s.submission_id, e.edit_id, l.name AS lineage, e.submitted_by
    FROM edit_requests e JOIN lineages l USING (lineage_id)
    LEFT JOIN submissions s ON s.lineage_id = e.lineage_id AND s.request_id = e.request_id
    WHERE e.edit_id = CAST(:ref AS uuid)
    """
)
_BY_REQUEST = text(
    """
    SELECT s.submission_id, e.edit_id, l.name AS lineage, coalesce(e.submitted_by, s.submitted_by) AS submitted_by
    FROM lineages l
    LEFT JOIN edit_requests e ON e.lineage_id = l.lineage_id AND e.request_id = :ref
    LEFT JOIN submissions s ON s.lineage_id = l.lineage_id AND s.request_id = :ref
    WHERE (CAST(:lineage AS text) IS NULL OR l.name = :lineage)
        AND (e.edit_id IS NOT NULL OR s.submission_id IS NOT NULL)
    ORDER BY l.name LIMIT 5
    """
)
_HISTORY = text("SELECT * FROM edit_history WHERE edit_id = ANY (CAST(:ids AS uuid[]))")
_ACCEPTED = text(
    """
    SELECT s.submission_id, l.name AS lineage, s.request_id, s.submitted_by, s.occurred_at, s.accepted_at,
           s.produced_at, d.error, d.created_at AS refused_at
    FROM submissions s JOIN lineages l USING (lineage_id)
    -- The embedded broker counts from 0 again when it is started anew: an older message may have had the place.
    LEFT JOIN dead_letters d ON d.topic = s.topic AND d.partition = s.partition AND d."offset" = s."offset"
        AND d.created_at >= s.accepted_at
    WHERE s.submission_id = CAST(:id AS uuid)
    ORDER BY d.created_at LIMIT 1
    """
)
_SUBMITTED = text(
    """
    SELECT e.edit_id, s.submission_id, s.accepted_at
    FROM edit_requests e JOIN submissions s ON s.lineage_id = e.lineage_id AND s.request_id = e.request_id
    WHERE e.edit_id = ANY (CAST(:ids AS uuid[]))
    """
)
# Each status has a page of its own in the index, newest first; the newest of them all are the page.
_PAGE = text(
    """
    SELECT found.edit_id
    FROM unnest(CAST(:statuses AS text[])) AS wanted (status)
    CROSS JOIN lineages l
    CROSS JOIN LATERAL (
        SELECT e.edit_id FROM edit_requests e
        WHERE e.lineage_id = l.lineage_id AND e.status = wanted.status
            AND e.edit_id < coalesce(CAST(:before AS uuid), 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        ORDER BY e.edit_id DESC LIMIT :limit
    ) found
    WHERE CAST(:lineage AS text) IS NULL OR l.name = :lineage
    ORDER BY found.edit_id DESC LIMIT :limit
    """
)
_OWN_PAGE = text(
    """
    SELECT e.edit_id FROM edit_requests e JOIN lineages l USING (lineage_id)
    WHERE e.submitted_by = :submitted_by AND e.status = ANY (CAST(:statuses AS text[]))
        AND (CAST(:lineage AS text) IS NULL OR l.name = :lineage)
        AND e.edit_id < coalesce(CAST(:before AS uuid), 'ffffffff-ffff-ffff-ffff-ffffffffffff')
    ORDER BY e.edit_id DESC LIMIT :limit
    """
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What is known of one correction."""

    submission: Mapping[str, Any] | None
    """How it came through the API, and whether intake refused it; None if it came over the topic."""
    edit: Mapping[str, Any] | None
    """Its row of `edit_history`; None while intake has not recorded it."""


class SqlCorrectionStore:
    """Reads for the HTTP API. A caller who may only see their own asks with their name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, ref: str, *, lineage: str | None = None, submitted_by: str | None = None) -> Standing:
        """Return a correction by its submission's id, its edit's id, or its sender's own id.

        Args:
            ref: the id.
            lineage: where the sender's own id is meant; needed if several lineages have it.
            submitted_by: whose it has to be; anybody's if None.

        Raises:
            UnknownRecord: if there is none, or it is somebody else's.
            InvalidInput: if several lineages have one.
        """
        with transaction(self._engine) as connection:
            found = [row for row in _named(connection, ref, lineage) if submitted_by in (None, row["submitted_by"])]
            if not found:
                raise UnknownRecord(f"expected the id of a correction, got {ref!r:.120}")
            if len(found) > 1:
                names = ", ".join(row["lineage"] for row in found)
                raise InvalidInput(f"lineage: expected one of {names}, which all have {ref!r:.120}; got none")
            [row] = found
            return Standing(
                submission=_one(connection, row["submission_id"]),
                edit=next(iter(_history(connection, [row["edit_id"]])), None) if row["edit_id"] else None,
            )

    def page(
        self,
        *,
        lineage: str | None = None,
        status: EditStatus | None = None,
        submitted_by: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Sequence[Standing]:
        """Return corrections that intake has recorded, newest first.

        Args:
            lineage: of which lineage; of all if None.
            status: with which status; with any if None.
            submitted_by: whose; everybody's if None.
            before: edit id of the last row of the page before.
            limit: most rows.
        """
        wanted = {
            "lineage": lineage,
            "statuses": [str(status)] if status else [str(one) for one in EditStatus],
            "before": before,
            "limit": limit,
        }
        with transaction(self._engine) as connection:
            if submitted_by is None:
                ids = connection.execute(_PAGE, wanted).scalars().all()
            else:
                ids = connection.execute(_OWN_PAGE, {**wanted, "submitted_by": submitted_by}).scalars().all()
            sent = _submissions_of(connection, ids)
            return [Standing(submission=sent.get(row["edit_id"]), edit=row) for row in _history(connection, ids)]


def _named(connection: Connection, ref: str, lineage: str | None) -> Sequence[RowMapping]:
    if is_uuid(ref):
        for query in (_BY_SUBMISSION, _BY_EDIT):
            if found := connection.execute(query, {"ref": ref}).mappings().all():
                return found
    return connection.execute(_BY_REQUEST, {"ref": ref, "lineage": lineage}).mappings().all()


def _one(connection: Connection, submission_id: Any) -> Mapping[str, Any] | None:
    if submission_id is None:
        return None
    return dict(connection.execute(_ACCEPTED, {"id": str(submission_id)}).mappings().one())


def _submissions_of(connection: Connection, ids: Sequence[Any]) -> Mapping[Any, Mapping[str, Any]]:
    found = connection.execute(_SUBMITTED, {"ids": [str(one) for one in ids]}).mappings() if ids else ()
    return {row["edit_id"]: dict(row) for row in found}


def _history(connection: Connection, ids: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    if not ids:
        return ()
    rows = connection.execute(_HISTORY, {"ids": [str(one) for one in ids]}).mappings().all()
    return [dict(row) for row in sorted(rows, key=lambda row: str(row["edit_id"]), reverse=True)]
