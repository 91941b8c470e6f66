"""What auditors ask about ledgers that were solved anew, and about facts that were folded into a base, in plain SQL.

AUDITING.md has the views. They hold nothing: everything is in `removals`, in gate reports and in the audit chain.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

NAMES = "ledger_history, folded_facts"
READERS = (
    "corrigenda_app, corrigenda_control, corrigenda_console, corrigenda_reviewer, corrigenda_web, corrigenda_auditor"
)

# A lineage that begins on a folded base says so in one of the first lines of its chain.
VIEWS = """
CREATE VIEW ledger_history AS
SELECT
    l.name AS lineage, m.requested_at AS asked_at, m.actor AS asked_by, m.reason,
    coalesce(CAST(m.resolving ->> 'rekeys' AS boolean), false) AS reads_keys, undone.seq AS undoes_seq,
    rejected.seq AS rejected_seq, m.status, m.outcome, m.finished_at, parent.seq AS from_seq, s.seq, s.snapshot_id,
    s.digest, s.status AS snapshot_status, s.prior_strength,
    CAST(g.report -> 'measurements' ->> 'solved_anew' AS double precision) AS moved, m.removal_id
FROM removals m
JOIN lineages l USING (lineage_id)
LEFT JOIN snapshots s ON s.snapshot_id = m.snapshot_id
LEFT JOIN snapshots parent ON parent.snapshot_id = s.parent_id
LEFT JOIN snapshots undone ON undone.snapshot_id = CAST(m.resolving ->> 'undoes' AS uuid)
LEFT JOIN snapshots rejected ON rejected.snapshot_id = m.rejected_snapshot_id
LEFT JOIN gate_reports g ON g.gate_report_id = coalesce(s.gate_report_id, m.gate_report_id)
WHERE m.resolving IS NOT NULL;

COMMENT ON VIEW ledger_history IS
'One row a ledger that was to be solved anew: who asked, why, on which snapshot, and what came of it.
Example: SELECT seq, from_seq, asked_by, reason FROM ledger_history WHERE lineage = ''demo'' ORDER BY asked_at;';
COMMENT ON COLUMN ledger_history.reads_keys IS 'Whether the keys of all active edits were read again.';
COMMENT ON COLUMN ledger_history.undoes_seq IS 'The snapshot before which the ledger goes back; null if it does not.';
COMMENT ON COLUMN ledger_history.rejected_seq IS 'The rejected snapshot that it follows from; null if somebody asked.';
COMMENT ON COLUMN ledger_history.moved IS 'How far it moved the weights, as a part of their whole shift from the base.';

CREATE VIEW folded_facts AS
SELECT
    f.chain AS lineage, f.payload ->> 'lineage' AS folded_from, s.seq AS from_seq, s.snapshot_id,
    s.digest AS snapshot_digest, h.edit_id, h.request_id, h.prompt, h.subject, h.relation, h.target_new,
    h.submitted_by, h.approved_by, h.approval_is_claimed, h.approved_at, f.at AS folded_at, f.actor AS folded_by,
    f.payload ->> 'provenance_digest' AS provenance_digest
FROM (
    SELECT chain, at, actor, CAST(payload AS jsonb) AS payload FROM audit_events
    WHERE action = 'lineage:folded' AND seq <= 8
) f
JOIN snapshots s ON s.snapshot_id = CAST(f.payload ->> 'snapshot_id' AS uuid)
JOIN edit_rows r ON r.lineage_id = s.lineage_id AND int4range(r.since_seq, r.until_seq) @> s.seq
JOIN edit_history h ON h.edit_id = r.edit_id
WHERE f.payload ->> 'new_lineage' = f.chain
  AND NOT jsonb_exists(coalesce(f.payload -> 'left_out', '[]'), CAST(r.edit_id AS text));

COMMENT ON VIEW folded_facts IS
'One row a fact that is a part of a lineage''s base: the edit that it was, in which snapshot, and who approved it.
Example: SELECT request_id, target_new, approved_by FROM folded_facts WHERE lineage = ''demo-2'' ORDER BY request_id;';
COMMENT ON COLUMN folded_facts.provenance_digest IS 'SHA-256 of provenance.json in the folder of the base.';
"""


def upgrade() -> None:
    """Add the views, for auditors and for what people are shown."""
    run_script(VIEWS)
    run_script(f"GRANT SELECT ON {NAMES} TO {READERS}")


def downgrade() -> None:
    """Take them away; they hold nothing."""
    run_script(f"DROP VIEW {NAMES}")
