"""What the review pages show, read a page at a time: no query costs more because more was edited before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, select, text

from pipeline.adapters.sql.approving.surroundings import moves_with
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import lineage_id_of
from pipeline.adapters.sql.database.rows import is_uuid
from pipeline.adapters.sql.database.tables import lineages, snapshots
from pipeline.domain.errors import UnknownRecord
from pipeline.services.registry.registry_ports import Surroundings

# The newest of each lineage, by its index: however many wait, no more are looked at than a page of each shows.
_WAITING = text(
    """
    SELECT l.name AS lineage, s.seq, s.snapshot_id::text, s.created_at, s.num_active, g.report -> 'rows' AS rows,
        clock_timestamp() - s.created_at AS age, s.snapshot_id = l.head_snapshot_id AS is_head,
        (SELECT count(*) FROM edit_rows r WHERE r.snapshot_id = s.snapshot_id) AS edits
    FROM lineages l
    LEFT JOIN snapshots champion ON champion.snapshot_id = l.champion_snapshot_id
    CROSS JOIN LATERAL (
        SELECT * FROM snapshots above
        WHERE above.lineage_id = l.lineage_id AND above.seq > coalesce(champion.seq, 0)
            AND above.status IN ('candidate', 'rolled_back')
        ORDER BY above.seq DESC LIMIT :limit
    ) s
    JOIN gate_reports g ON g.gate_report_id = s.gate_report_id
    ORDER BY s.created_at DESC LIMIT :limit
    """
)
_SNAPSHOTS = text(
    """
    SELECT s.seq, s.snapshot_id::text, s.status, s.created_at, s.num_active, s.registry_version,
        s.snapshot_id = l.champion_snapshot_id AS is_champion
    FROM lineages l JOIN snapshots s USING (lineage_id)
    WHERE l.lineage_id = :lineage_id AND s.seq < :before ORDER BY s.seq DESC LIMIT :limit
    """
)
_BROUGHT = text(
    """
    SELECT e.edit_id::text, e.request_id, e.prompt, e.question, e.messages, e.target_new, e.target_true, e.submitted_by,
        e.source, e.status
    FROM snapshots s JOIN edit_rows r USING (snapshot_id) JOIN edit_requests e USING (edit_id)
    WHERE s.lineage_id = :lineage_id AND s.seq = :seq
    ORDER BY r.place LIMIT :limit
    """
)
_APPROVERS = text(
    """
    SELECT DISTINCT p.actor FROM approvals p JOIN lineages l USING (lineage_id)
    WHERE p.snapshot_id = CAST(:snapshot_id AS uuid) AND p.decision = 'endorsed' AND p.refusal IS NULL
      AND p.champion_seen IS NOT DISTINCT FROM l.champion_snapshot_id
    ORDER BY p.actor
    """
)
_DECISIONS = text(
    """
    SELECT decision, actor, reason, refusal, decided_at FROM approvals
    WHERE snapshot_id = CAST(:snapshot_id AS uuid) ORDER BY decided_at DESC LIMIT :limit
    """
)
# Ordered by the column, which has an index: `edit_id` alone would be the text of it, of every row there is.
_EDITS = text(
    """
    SELECT edit_id::text, request_id, prompt, target_new, status, submitted_by, received_at
    FROM edit_requests e
    WHERE lineage_id = :lineage_id AND (CAST(:before AS uuid) IS NULL OR e.edit_id < CAST(:before AS uuid))
    ORDER BY e.edit_id DESC LIMIT :limit
    """
)
# Superseded edits point at what holds, and so on; the chain is walked from one of them, both ways.
_SAME_FACT = text(
    """
    WITH RECURSIVE later AS (
        SELECT edit_id, superseded_by, 0 AS steps FROM edit_requests WHERE edit_id = CAST(:edit_id AS uuid)
        UNION ALL
        SELECT e.edit_id, e.superseded_by, steps + 1 FROM later JOIN edit_requests e ON e.edit_id = later.superseded_by
        WHERE steps < :limit
    ), every AS (
        SELECT edit_id, 0 AS steps FROM later
        UNION
        SELECT e.edit_id, steps + 1 FROM every JOIN edit_requests e ON e.superseded_by = every.edit_id
        WHERE steps < :limit
    )
    SELECT DISTINCT e.edit_id::text, e.request_id, e.target_new, e.status, e.submitted_by, e.occurred_at
    FROM every JOIN edit_requests e USING (edit_id) ORDER BY e.occurred_at DESC LIMIT :limit
    """
)
_DEAD = text(
    """
    SELECT l.name AS lineage, e.* FROM lineages l CROSS JOIN LATERAL (
        SELECT edit_id::text, request_id, prompt, target_new, reason, received_at FROM edit_requests d
        WHERE lineage_id = l.lineage_id AND status = 'dead' ORDER BY d.edit_id DESC LIMIT :limit
    ) e ORDER BY l.name, e.edit_id DESC
    """
)
_SOLVED_ANEW = text(
    """
    SELECT r.removal_id::text, r.requested_at, r.actor, r.reason, r.status, r.outcome, r.resolving, s.seq,
        s.status AS snapshot_status, undone.seq AS undoes_seq, undone.status AS undoes_status
    FROM removals r
    LEFT JOIN snapshots s ON s.snapshot_id = r.snapshot_id
    LEFT JOIN snapshots undone ON undone.snapshot_id = CAST(r.resolving ->> 'undoes' AS uuid)
    WHERE r.lineage_id = :lineage_id AND r.resolving IS NOT NULL
    ORDER BY r.requested_at DESC LIMIT :limit
    """
)
_NEWS = text(
    """
    SELECT seq, chain, at, actor, action, subject FROM audit_events
    WHERE chain = :chain AND seq > :after ORDER BY seq DESC LIMIT :limit
    """
)

Rows = Sequence[Mapping[str, Any]]
"""Rows as dictionaries by column."""


class SqlPageStore:
    """Reads of the review pages, as the login of their process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def waiting(self, *, limit: int) -> Rows:
        """Return candidates above the champion of every lineage, newest first, with the rows of their gate reports."""
        return self._rows(_WAITING, limit=limit)

    def snapshots(self, lineage: str, *, before: int, limit: int) -> Rows:
        """Return snapshots below a place, newest first.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        return self._rows(_SNAPSHOTS, lineage, before=before, limit=limit)

    def brought(self, lineage: str, seq: int, *, limit: int) -> Rows:
        """Return the edits that came in with a snapshot, in their order."""
        return self._rows(_BROUGHT, lineage, seq=seq, limit=limit)

    def surroundings(self, lineage: str, seq: int) -> Surroundings:
        """Return what goes live with a snapshot and what left with it.

        Raises:
            UnknownRecord: if there is no such snapshot.
        """
        with transaction(self._engine) as connection:
            lineage_id = lineage_id_of(connection, lineage)
            query = select(snapshots).where(snapshots.c.lineage_id == lineage_id, snapshots.c.seq == seq)
            row = connection.execute(query).one_or_none()
            if row is None:
                raise UnknownRecord(f"expected a snapshot of {lineage!r}, got {seq}", lineage=lineage)
            champion = (
                select(snapshots.c.seq)
                .join(lineages, lineages.c.champion_snapshot_id == snapshots.c.snapshot_id)
                .where(lineages.c.lineage_id == lineage_id)
            )
            return moves_with(connection, row, champion_seq=connection.scalar(champion) or 0)

    def approvers(self, snapshot_id: str) -> Sequence[str]:
        """Return who has approved a snapshot so far where its lineage's policy asks for more than one person."""
        found = self._rows(_APPROVERS, snapshot_id=snapshot_id)
        return [str(row["actor"]) for row in found]

    def decisions(self, snapshot_id: str, *, limit: int) -> Rows:
        """Return what people decided about a snapshot, also what was refused to them; the latest first."""
        return self._rows(_DECISIONS, snapshot_id=snapshot_id, limit=limit)

    def edits(self, lineage: str, *, before: str | None, limit: int) -> Rows:
        """Return edits that were received before one, newest first; ids that are none count as no bound.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        bound = before if before is not None and is_uuid(before) else None
        return self._rows(_EDITS, lineage, before=bound, limit=limit)

    def same_fact(self, edit_id: str, *, limit: int) -> Rows:
        """Return an edit, those that it superseded, and those that superseded it; the latest correction first."""
        return self._rows(_SAME_FACT, edit_id=edit_id, limit=limit)

    def dead(self, *, limit: int) -> Rows:
        """Return dead edits by lineage, the newest first; of each lineage so many."""
        return self._rows(_DEAD, limit=limit)

    def solved_anew(self, lineage: str, *, limit: int) -> Rows:
        """Return how a lineage's ledger was, or is to be, solved anew; the latest first.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        return self._rows(_SOLVED_ANEW, lineage, limit=limit)

    def news(self, chain: str, *, after: int, limit: int) -> Rows:
        """Return the last audit lines of a chain above a place, oldest first."""
        return list(reversed(self._rows(_NEWS, chain=chain, after=after, limit=limit)))

    def _rows(self, query: Any, lineage: str | None = None, **values: Any) -> Rows:
        with transaction(self._engine) as connection:
            if lineage is not None:
                values["lineage_id"] = lineage_id_of(connection, lineage)
            return [dict(row) for row in connection.execute(query, values).mappings()]
