"""Who may change what: triggers that keep history, roles with only the grants they need.

`corrigenda_app` is taken on by every process, `corrigenda_auditor` by whoever reads the views. Both cannot log in, and
belong to the whole cluster: going down takes their rights in this database and leaves the roles.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from migrations.script import run_script
from pipeline.domain.errors import Misconfigured

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEPT = (
    "approvals",
    "batch_edits",
    "chain_heads",
    "dead_letters",
    "edit_batches",
    "edit_requests",
    "edit_rows",
    "gate_reports",
    "ingest_offsets",
    "leases",
    "lineages",
    "removals",
    "snapshot_edits",
    "snapshots",
)
"""Rows of these are never deleted, not by their owner either."""

FINAL = ("audit_events",)
"""Rows of these never change."""

# ALWAYS: `session_replication_role = replica` does not switch them off.
FUNCTIONS = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: history is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE FUNCTION refuse_falling() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'epochs, offsets and heads of % only grow', TG_TABLE_NAME USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER offsets_only_grow BEFORE UPDATE ON ingest_offsets FOR EACH ROW
    WHEN (NEW.epoch < OLD.epoch OR NEW.next_offset < OLD.next_offset) EXECUTE FUNCTION refuse_falling();
CREATE TRIGGER epochs_only_grow BEFORE UPDATE ON leases FOR EACH ROW
    WHEN (NEW.epoch < OLD.epoch) EXECUTE FUNCTION refuse_falling();
CREATE TRIGGER heads_only_grow BEFORE UPDATE ON chain_heads FOR EACH ROW
    WHEN (NEW.seq < OLD.seq) EXECUTE FUNCTION refuse_falling();
"""

GUARD = """
CREATE TRIGGER keeps_history BEFORE {events} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER keeps_history;
"""

ROLES = """
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['corrigenda_app', 'corrigenda_auditor'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            END IF;
        -- Roles belong to the cluster: another database may be migrated at the same moment.
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
        IF NOT pg_has_role(current_user, role, 'SET') THEN
            EXECUTE format('GRANT %I TO CURRENT_USER WITH INHERIT FALSE, SET TRUE', role);
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', role);
    END LOOP;
END $$;
"""

GRANTS = """
GRANT SELECT, INSERT ON
    approvals, audit_events, batch_edits, chain_heads, dead_letters, edit_batches, edit_requests, edit_rows,
    gate_reports, ingest_offsets, leases, lineages, outbox, removals, snapshot_edits, snapshots
    TO corrigenda_app;
GRANT UPDATE ON chain_heads, ingest_offsets, leases, outbox TO corrigenda_app;
GRANT UPDATE (outcome, gate_report_id) ON batch_edits TO corrigenda_app;
GRANT UPDATE (replayed_at) ON dead_letters TO corrigenda_app;
GRANT UPDATE (finished_at, seconds) ON edit_batches TO corrigenda_app;
GRANT UPDATE (status, attempts, next_attempt_at, reason, superseded_by) ON edit_requests TO corrigenda_app;
GRANT UPDATE (head_snapshot_id, champion_snapshot_id, seq, num_batches, hold, policy, editor, editor_digest)
    ON lineages TO corrigenda_app;
GRANT UPDATE (status, attempts, outcome, gate_report_id, snapshot_id, finished_at) ON removals TO corrigenda_app;
GRANT UPDATE (status, registry_version) ON snapshots TO corrigenda_app;
GRANT SELECT ON alembic_version TO corrigenda_app;
GRANT SELECT ON audit_events, chain_heads, lineages, alembic_version TO corrigenda_auditor;
"""

REVOKES = """
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM corrigenda_app, corrigenda_auditor;
REVOKE USAGE ON SCHEMA public FROM corrigenda_app, corrigenda_auditor;
"""


def upgrade() -> None:
    """Put up the guards."""
    run_script(FUNCTIONS)
    for table in KEPT:
        run_script(GUARD.format(events="DELETE OR TRUNCATE", table=table))
    for table in FINAL:
        run_script(GUARD.format(events="UPDATE OR DELETE OR TRUNCATE", table=table))
    run_script(ROLES)
    run_script(GRANTS)


def downgrade() -> None:
    """Take them down again, unless there is history to guard."""
    if op.get_bind().scalar(text("SELECT EXISTS (SELECT FROM audit_events)")):
        raise Misconfigured("expected an empty history before its guards go, got lines in audit_events")
    for table in (*KEPT, *FINAL):
        run_script(f"DROP TRIGGER keeps_history ON {table}")
    run_script("DROP TRIGGER offsets_only_grow ON ingest_offsets")
    run_script("DROP TRIGGER epochs_only_grow ON leases")
    run_script("DROP TRIGGER heads_only_grow ON chain_heads")
    run_script("DROP FUNCTION refuse_change, refuse_falling")
    run_script(REVOKES)
