"""What auditors ask in plain SQL: `request_log`, `edit_times`, `snapshot_contents`, `live_history`, `decisions`.

AUDITING.md has the questions. Each view reads a row that is asked for by an index, however long the history is.
"""

from __future__ import annotations

from importlib import import_module

from migrations.script import run_script

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

chats = import_module("migrations.versions.0006_chats")
intervals = import_module("migrations.versions.0004_intervals")

# A prompt may be longer than a row of a B-tree.
INDEXES = """
CREATE INDEX ix_edit_requests_subject ON edit_requests (lineage_id, lower(subject)) WHERE subject IS NOT NULL;
CREATE INDEX ix_edit_requests_prompt ON edit_requests USING hash (prompt);
CREATE INDEX ix_approvals_decided ON approvals (lineage_id, decided_at);
"""

# Whether the snapshot of an approval `p` holds an edit `e`. It counts, so that the planner asks it of one approval
# after the other, from the first that comes into question, and does not join all of them first.
HELD = """(
        SELECT count(*) FROM edit_rows a JOIN snapshots x ON x.snapshot_id = p.snapshot_id
        WHERE a.edit_id = e.edit_id AND int4range(a.since_seq, a.until_seq) @> x.seq
    ) > 0"""

VIEWS = f"""
CREATE VIEW request_log AS
SELECT
    l.name AS lineage, e.edit_id, e.request_id, e.prompt, e.subject, e.relation, e.target_new, e.target_true,
    e.conflict_key AS fact, e.source, e.submitted_by, e.occurred_at, e.received_at, e.status, e.attempts, e.reason,
    e.superseded_by
FROM edit_requests e JOIN lineages l USING (lineage_id);

COMMENT ON VIEW request_log IS
'One row a correction as it was asked for, and how it ended. Counts over many read this; edit_history says more of one.
Example: SELECT source, status, count(*) FROM request_log GROUP BY 1, 2;';
COMMENT ON COLUMN request_log.fact IS 'Equal for corrections of the same fact, of which one at most is active.';

CREATE VIEW edit_times AS
SELECT
    l.name AS lineage, e.edit_id, e.request_id, e.occurred_at, e.received_at, s.seq AS snapshot_seq,
    s.created_at AS snapshotted_at, live.live_at,
    s.created_at - e.received_at AS until_candidate,
    live.live_at - s.created_at AS until_decision,
    live.live_at - e.received_at AS until_live
FROM edit_requests e
JOIN lineages l USING (lineage_id)
CROSS JOIN LATERAL (SELECT min(r.since_seq) AS seq FROM edit_rows r WHERE r.edit_id = e.edit_id) brought
LEFT JOIN snapshots s ON s.lineage_id = e.lineage_id AND s.seq = brought.seq
LEFT JOIN LATERAL (
    SELECT p.decided_at AS live_at FROM approvals p
    WHERE p.lineage_id = e.lineage_id AND p.decided_at >= s.created_at AND {HELD}
      AND p.decision = 'approved' AND p.refusal IS NULL
    ORDER BY p.decided_at LIMIT 1
) live ON true;

COMMENT ON VIEW edit_times IS
'One row a correction: when it came in, became a candidate and went live first, and how long each step took.
Example: SELECT avg(until_live) FROM edit_times WHERE lineage = ''demo'';';
COMMENT ON COLUMN edit_times.live_at IS 'Null while it was never live.';

CREATE VIEW snapshot_contents AS
SELECT
    l.name AS lineage, s.seq, s.snapshot_id, r.since_seq, e.edit_id, e.request_id, e.prompt, e.subject, e.relation,
    e.target_new, e.target_true, e.submitted_by
FROM snapshots s
JOIN lineages l USING (lineage_id)
JOIN edit_rows r ON r.lineage_id = s.lineage_id AND int4range(r.since_seq, r.until_seq) @> s.seq
JOIN edit_requests e ON e.edit_id = r.edit_id;

COMMENT ON VIEW snapshot_contents IS
'One row a snapshot and an edit that it holds. Name the lineage and the seq, or the edit: together they are many rows.
Example: SELECT prompt, target_new FROM snapshot_contents WHERE lineage = ''demo'' AND seq = 4;';
COMMENT ON COLUMN snapshot_contents.since_seq IS 'The snapshot that brought the edit in.';

CREATE VIEW decisions AS
SELECT
    l.name AS lineage, s.seq, s.snapshot_id, s.registry_version, p.approval_id, p.decision, p.actor, p.is_claimed,
    p.channel, p.reason, p.refusal, p.decided_at
FROM approvals p
JOIN lineages l USING (lineage_id)
JOIN snapshots s ON s.snapshot_id = p.snapshot_id;

COMMENT ON VIEW decisions IS
'One row a decision that somebody asked for, also those that were refused.
Example: SELECT actor, decision, refusal FROM decisions WHERE lineage = ''demo'' ORDER BY decided_at;';
COMMENT ON COLUMN decisions.refusal IS 'Why it was not carried out; null if it was.';

CREATE VIEW live_history AS
SELECT
    l.name AS lineage, s.seq, s.snapshot_id, s.digest, s.registry_version, p.actor AS decided_by, p.decision,
    p.decided_at AS live_from, (
        SELECT n.decided_at FROM approvals n
        WHERE n.lineage_id = p.lineage_id AND n.decided_at > p.decided_at
          AND n.decision IN ('approved', 'rolled_back') AND n.refusal IS NULL
        ORDER BY n.decided_at LIMIT 1
    ) AS live_until
FROM approvals p
JOIN lineages l USING (lineage_id)
JOIN snapshots s ON s.snapshot_id = p.snapshot_id
WHERE p.decision IN ('approved', 'rolled_back') AND p.refusal IS NULL;

COMMENT ON VIEW live_history IS
'One row a time in which a snapshot was the one to serve, by the decision that began it.
Example: SELECT seq FROM live_history WHERE lineage = ''demo'' AND live_from <= now() ORDER BY live_from DESC LIMIT 1;';
COMMENT ON COLUMN live_history.live_until IS 'When the next decision ended it; null for what is live.';
"""

NAMES = "request_log, edit_times, snapshot_contents, decisions, live_history"

# No approval of a snapshot that holds an edit is older than the first snapshot that does.
FASTER = {
    "FROM edit_rows a JOIN approvals p ON p.lineage_id = a.lineage_id "
    "JOIN snapshots x ON x.snapshot_id = p.snapshot_id\n": "FROM approvals p\n",
    "WHERE a.edit_id = e.edit_id AND int4range(a.since_seq, a.until_seq) @> x.seq\n": (
        f"WHERE p.lineage_id = e.lineage_id AND p.decided_at >= s.created_at AND {HELD}\n"
    ),
}


def upgrade() -> None:
    """Add the views for auditors and what they are read by."""
    run_script(INDEXES)
    run_script(VIEWS)
    run_script(f"GRANT SELECT ON {NAMES} TO corrigenda_auditor")
    run_script(intervals.changed(_edit_history(), FASTER))


def downgrade() -> None:
    """Take them away; they hold nothing."""
    run_script(_edit_history())
    run_script(f"DROP VIEW {NAMES}")
    run_script("DROP INDEX ix_approvals_decided, ix_edit_requests_prompt, ix_edit_requests_subject")


def _edit_history() -> str:
    """Return the statement that makes `edit_history` what revision 0006 says."""
    return str(chats._shown(chats._edit_history(), "held.is_in_head, held.is_live\n"))
