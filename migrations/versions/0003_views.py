"""The views that auditors read: `edit_history`, `lineage_history`, `live_edits`.

Questions they answer:

    -- What became of one correction, and who let it go live?
    SELECT state, gate_reason, snapshot_seq, registry_version, approved_by, approved_at
      FROM edit_history WHERE lineage = 'demo' AND request_id = 'fact-17';

    -- What does the live model hold that nobody but a tag's author vouches for?
    SELECT request_id, prompt, target_new, approved_by FROM edit_history WHERE is_live AND approval_is_claimed;

    -- What was still waiting an hour after it came in?
    SELECT lineage, request_id, state, attempts, reason FROM edit_history
     WHERE state IN ('queued', 'editing') AND received_at < now() - interval '1 hour';

    -- Which snapshots were live, and what did their gates measure?
    SELECT seq, status, approved_by, approved_at, metrics FROM lineage_history WHERE lineage = 'demo' ORDER BY seq;

    -- Which fact does the live model hold about a subject?
    SELECT prompt, target_new, since_seq FROM live_edits WHERE lineage = 'demo' AND subject = 'Australia';
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# `state` says what a person wants to know; `status` is the edit's own, as of the head of its lineage.
EDIT_HISTORY = """
CREATE VIEW edit_history AS
SELECT
    e.edit_id, l.name AS lineage, e.request_id, e.prompt, e.subject, e.relation, e.target_new, e.target_true,
    e.source, e.submitted_by, e.occurred_at, e.received_at, e.topic, e.partition, e."offset", e.payload_digest,
    e.status,
    CASE
        WHEN held.is_live AND NOT (held.is_in_head AND pending.removal_id IS NULL) THEN 'live, removal pending'
        WHEN held.is_live THEN 'live'
        WHEN held.is_in_head AND pending.removal_id IS NOT NULL THEN 'candidate, removal pending'
        WHEN held.is_in_head AND approved.approval_id IS NOT NULL THEN 'rolled back'
        WHEN held.is_in_head THEN 'candidate'
        WHEN e.status = 'received' THEN 'queued'
        WHEN e.status = 'claimed' THEN 'editing'
        WHEN e.status = 'reverted' THEN 'gone'
        ELSE e.status
    END AS state,
    e.attempts, e.reason, e.superseded_by, winner.request_id AS superseded_by_request_id,
    tried.batch_id, tried.ordinal AS batch_ordinal, tried.claimed_at, tried.outcome AS batch_outcome,
    g.gate_report_id, g.verdict AS gate_verdict, g.created_at AS gated_at,
    (own.verdict ->> 'passed')::boolean AS gate_passed, own.verdict ->> 'reason' AS gate_reason,
    own.score AS gate_score,
    s.snapshot_id, s.seq AS snapshot_seq, s.digest AS snapshot_digest, s.status AS snapshot_status,
    s.created_at AS snapshotted_at, s.registry_version,
    CASE WHEN NOT held.is_in_head THEN span.last_seq + 1 END AS left_seq,
    approved.approval_id, approved.snapshot_id AS approved_snapshot_id, approved.actor AS approved_by,
    approved.is_claimed AS approval_is_claimed, approved.channel AS approval_channel,
    approved.decided_at AS approved_at, approved.reason AS approval_reason,
    pending.removal_id, pending.actor AS removal_asked_by, pending.requested_at AS removal_asked_at,
    held.is_in_head, held.is_live
FROM edit_requests e
JOIN lineages l USING (lineage_id)
CROSS JOIN LATERAL (
    SELECT
        EXISTS (SELECT FROM snapshot_edits h WHERE h.snapshot_id = l.head_snapshot_id AND h.edit_id = e.edit_id)
            AS is_in_head,
        EXISTS (SELECT FROM snapshot_edits c WHERE c.snapshot_id = l.champion_snapshot_id AND c.edit_id = e.edit_id)
            AS is_live
) held
CROSS JOIN LATERAL (
    SELECT min(x.seq) AS first_seq, max(x.seq) AS last_seq
    FROM snapshot_edits a JOIN snapshots x USING (snapshot_id) WHERE a.edit_id = e.edit_id
) span
LEFT JOIN snapshots s ON s.lineage_id = e.lineage_id AND s.seq = span.first_seq
LEFT JOIN edit_requests winner ON winner.edit_id = e.superseded_by
LEFT JOIN LATERAL (
    SELECT b.batch_id, b.ordinal, b.claimed_at, be.outcome, be.gate_report_id
    FROM batch_edits be JOIN edit_batches b USING (batch_id) WHERE be.edit_id = e.edit_id
    ORDER BY b.ordinal DESC LIMIT 1
) tried ON true
LEFT JOIN gate_reports g ON g.gate_report_id = coalesce(tried.gate_report_id, s.gate_report_id)
LEFT JOIN LATERAL (
    SELECT
        (SELECT v FROM jsonb_array_elements(g.report -> 'edits') v WHERE v ->> 'edit_id' = e.edit_id::text LIMIT 1)
            AS verdict,
        (SELECT m FROM jsonb_array_elements(g.report #> '{measurements,edits}') m
          WHERE m ->> 'edit_id' = e.edit_id::text LIMIT 1) AS score
) own ON true
LEFT JOIN LATERAL (
    SELECT p.approval_id, p.snapshot_id, p.actor, p.is_claimed, p.channel, p.decided_at, p.reason
    FROM approvals p JOIN snapshot_edits a ON a.snapshot_id = p.snapshot_id AND a.edit_id = e.edit_id
    WHERE p.decision = 'approved' AND p.refusal IS NULL
    ORDER BY p.decided_at LIMIT 1
) approved ON true
LEFT JOIN LATERAL (
    SELECT r.removal_id, r.actor, r.requested_at FROM removals r
    WHERE r.lineage_id = e.lineage_id AND r.status = 'requested' AND r.edit_ids ? e.edit_id::text
    ORDER BY r.requested_at LIMIT 1
) pending ON true;

COMMENT ON VIEW edit_history IS
'One row an edit: request, last batch, gate, first snapshot, registry version, approval, and where it stands now.
Example: SELECT state, gate_reason, snapshot_seq, approved_by FROM edit_history WHERE request_id = ''fact-17'';';
COMMENT ON COLUMN edit_history.state IS
'queued, editing, candidate, live, "live, removal pending", "candidate, removal pending", rolled back, gone (reverted),
rejected, superseded or dead. An edit that its lineage''s head no longer holds stays live until that head is approved.';
COMMENT ON COLUMN edit_history.gate_score IS 'What was measured of this edit alone; see EditScore.';
COMMENT ON COLUMN edit_history.left_seq IS 'The first snapshot without it; null while the head holds it.';
COMMENT ON COLUMN edit_history.approval_is_claimed IS 'Whether the approver''s name is only what a tag claims.';
"""

LINEAGE_HISTORY = """
CREATE VIEW lineage_history AS
SELECT
    l.name AS lineage, s.seq, s.snapshot_id, s.status, parent.seq AS parent_seq, s.basis,
    s.digest, s.delta_digest, s.delta ->> 'uri' AS delta_uri,
    b.batch_id, b.ordinal AS batch_ordinal, b.seconds,
    sets.num_active, sets.num_added, sets.num_left,
    g.gate_report_id, g.verdict AS gate_verdict, g.policy_digest, g.probe_set_digest, measured.metrics,
    s.registry_version, s.created_at,
    decided.decision, decided.actor AS decided_by, decided.is_claimed AS decision_is_claimed,
    decided.channel AS decision_channel, decided.reason AS decision_reason, decided.decided_at,
    approved.actor AS approved_by, approved.decided_at AS approved_at,
    s.snapshot_id IS NOT DISTINCT FROM l.head_snapshot_id AS is_head,
    s.snapshot_id IS NOT DISTINCT FROM l.champion_snapshot_id AS is_champion
FROM snapshots s
JOIN lineages l USING (lineage_id)
JOIN gate_reports g ON g.gate_report_id = s.gate_report_id
LEFT JOIN snapshots parent ON parent.snapshot_id = s.parent_id
LEFT JOIN edit_batches b ON b.batch_id = s.batch_id
CROSS JOIN LATERAL (
    SELECT
        count(now_held.edit_id) AS num_active,
        count(*) FILTER (WHERE was_held.edit_id IS NULL) AS num_added,
        count(*) FILTER (WHERE now_held.edit_id IS NULL) AS num_left
    FROM (SELECT edit_id FROM snapshot_edits WHERE snapshot_id = s.snapshot_id) now_held
    FULL JOIN (SELECT edit_id FROM snapshot_edits WHERE snapshot_id = s.parent_id) was_held USING (edit_id)
) sets
CROSS JOIN LATERAL (
    SELECT jsonb_object_agg(m ->> 'metric', m -> 'value') AS metrics FROM jsonb_array_elements(g.report -> 'rows') m
) measured
LEFT JOIN LATERAL (
    SELECT p.* FROM approvals p WHERE p.snapshot_id = s.snapshot_id AND p.refusal IS NULL
    ORDER BY p.decided_at DESC LIMIT 1
) decided ON true
LEFT JOIN LATERAL (
    SELECT p.* FROM approvals p
    WHERE p.snapshot_id = s.snapshot_id AND p.refusal IS NULL AND p.decision = 'approved'
    ORDER BY p.decided_at LIMIT 1
) approved ON true;

COMMENT ON VIEW lineage_history IS
'One row a snapshot: where it stands, what it was made on, its gate, its registry version, and who decided about it.
Example: SELECT seq, status, metrics, approved_by FROM lineage_history WHERE lineage = ''demo'' ORDER BY seq;';
COMMENT ON COLUMN lineage_history.num_left IS 'Edits of the parent that it no longer holds.';
COMMENT ON COLUMN lineage_history.decided_by IS
'Actor of the last decision about this very snapshot that was carried out.';
COMMENT ON COLUMN lineage_history.approved_by IS
'Null as well where a later snapshot was approved, and it with that one.';
"""

LIVE_EDITS = """
CREATE VIEW live_edits AS
SELECT
    l.name AS lineage, e.edit_id, e.request_id, e.prompt, e.subject, e.relation, e.target_new, e.target_true,
    e.occurred_at, span.since_seq, c.snapshot_id AS champion_id, c.seq AS champion_seq, c.registry_version
FROM lineages l
JOIN snapshots c ON c.snapshot_id = l.champion_snapshot_id
JOIN snapshot_edits a ON a.snapshot_id = c.snapshot_id
JOIN edit_requests e ON e.edit_id = a.edit_id
CROSS JOIN LATERAL (
    SELECT min(x.seq) AS since_seq FROM snapshot_edits y JOIN snapshots x USING (snapshot_id)
    WHERE y.edit_id = e.edit_id
) span;

COMMENT ON VIEW live_edits IS
'The active set of every champion: what the model that is live was told.
Example: SELECT prompt, target_new FROM live_edits WHERE lineage = ''demo'' AND subject = ''Australia'';';
COMMENT ON COLUMN live_edits.since_seq IS 'The first snapshot that held the edit.';
"""

VIEWS = ("edit_history", "lineage_history", "live_edits")


def upgrade() -> None:
    """Make the views and let both roles read them."""
    for statement in (EDIT_HISTORY, LINEAGE_HISTORY, LIVE_EDITS):
        run_script(statement)
    run_script(f"GRANT SELECT ON {', '.join(VIEWS)} TO corrigenda_app, corrigenda_auditor")


def downgrade() -> None:
    """Drop the views; they hold nothing."""
    run_script(f"DROP VIEW {', '.join(VIEWS)}")
