"""What goes live with a snapshot, and word of it to the producers of its edits when the champion moves."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, literal, or_, select, text

from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.tables import edit_rows, snapshots
from pipeline.domain.lifecycle import SnapshotStatus

# Only an activation that begins or ends between the two snapshots can make a difference: what else a lineage holds is
# not read. Both places are parameters, and each edit that moves is looked up by itself: where the planner does not see
# how few there are, it reads all rows to find theirs.
_OWE = text(
    """
    WITH touched AS (
        SELECT r.edit_id FROM snapshots s JOIN edit_rows r ON r.snapshot_id = s.snapshot_id
        WHERE s.lineage_id = :lineage_id AND s.seq > :low AND s.seq <= :high
        UNION
        SELECT r.edit_id FROM edit_rows r
        WHERE r.lineage_id = :lineage_id AND r.until_seq > :low AND r.until_seq <= :high
    )
    INSERT INTO outbox (kind, dedup_key, stream, payload)
    SELECT 'result', format('result:%s:live:%s', e.edit_id, CAST(:approval_id AS text)), 'result:' || e.edit_id,
           jsonb_build_object(
               'edit_id', e.edit_id, 'request_id', e.request_id, 'lineage', CAST(:lineage AS text),
               'status', e.status, 'reason', e.reason, 'is_live', held.is_live, 'at', clock_timestamp()
           )
    FROM touched t
    CROSS JOIN LATERAL (
        SELECT bool_or(int4range(r.since_seq, r.until_seq) @> CAST(:now AS integer)) AS is_live,
               bool_or(int4range(r.since_seq, r.until_seq) @> CAST(:before AS integer)) AS was_live
        FROM edit_rows r WHERE r.edit_id = t.edit_id
    ) held
    JOIN edit_requests e USING (edit_id)
    WHERE held.is_live <> held.was_live
    ORDER BY e.edit_id
    ON CONFLICT (dedup_key) DO NOTHING
    """
)


def owe_word_of_live_edits(connection: Connection, on: LockedLineage, *, seq: int, approval_id: str) -> None:
    """Owe a result for each edit that the champion at a seq holds and the one before did not, or the other way.

    Args:
        connection: in the transaction that moves the champion.
        on: the lineage as it stood before.
        seq: place of the champion from now on.
        approval_id: the decision that moves it; it tells two moves apart.
    """
    query = select(snapshots.c.seq).where(snapshots.c.snapshot_id == on.champion_id)
    before = connection.scalar(query) or 0  # the base is before the first
    values = {"lineage_id": on.lineage_id, "lineage": on.name, "approval_id": approval_id}
    between = {"before": before, "now": seq, "low": min(before, seq), "high": max(before, seq)}
    connection.execute(_OWE, values | between)


def is_brought_and_held(seq: int) -> ColumnElement[bool]:
    """Return the condition that the snapshot at a seq holds an edit that a snapshot up to there brought."""
    is_held = or_(edit_rows.c.until_seq.is_(None), edit_rows.c.until_seq > seq)
    return (edit_rows.c.snapshot_id == snapshots.c.snapshot_id) & is_held


def goes_live_with(seq: int) -> ColumnElement[bool]:
    """Return the condition that a snapshot above the champion goes live with the one at a seq, which is built on it.

    The status alone does not say so: edits of one that was rejected, or retired by that, stay until they are removed.
    """
    stands = snapshots.c.status.in_((SnapshotStatus.candidate, SnapshotStatus.rolled_back))
    return or_(stands, select(literal(1)).where(is_brought_and_held(seq)).exists())
