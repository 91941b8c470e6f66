"""A database login for each process, with the rights that its work needs and no others.

Each role below is what one process logs in as. They come without a password, and so without a way in: `corrigenda up`
and `python -m pipeline.entrypoints.migrate` let them in with passwords of their own (`pipeline.adapters.logins`). The
owner of the schema is left to migrations.

`corrigenda_app` keeps the rights of all of them together: processes of the version before go on while this one comes.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INTAKE, EDITOR, CONTROL = "corrigenda_intake", "corrigenda_editor", "corrigenda_control"
CONSOLE, REVIEWER, AUDITOR = "corrigenda_console", "corrigenda_reviewer", "corrigenda_auditor"
NEW = (INTAKE, EDITOR, CONTROL, CONSOLE, REVIEWER)
ALL = (*NEW, AUDITOR)

# Roles belong to the cluster: another database may be migrated at the same moment. Nobody may take one on.
ROLES = """
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['{names}'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', role);
    END LOOP;
END $$;
"""

# Who else is in the server, MLflow for one, has no business here; nor do we need temporary tables.
DATABASE = """
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO corrigenda_app, {names}', current_database());
END $$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
"""

# Everybody adds lines to the history and owes side effects. PostgreSQL reads the key of a debt to tell
# whether it is owed already.
EVERY_WRITER = """
GRANT SELECT ON alembic_version, lineages TO {names};
GRANT INSERT ON audit_events TO {names};
GRANT SELECT, INSERT, UPDATE ON chain_heads TO {names};
GRANT SELECT (outbox_id, dedup_key), INSERT ON outbox TO {names};
"""

GRANTS = """
GRANT SELECT, INSERT, UPDATE ON ingest_offsets TO corrigenda_intake;
GRANT SELECT, INSERT ON edit_requests, dead_letters TO corrigenda_intake;

GRANT SELECT ON
    approvals, audit_events, batch_edits, edit_batches, edit_requests, edit_rows, gate_reports, leases, removals,
    snapshots
    TO corrigenda_editor;
GRANT INSERT ON batch_edits, edit_batches, edit_rows, gate_reports, leases, snapshots TO corrigenda_editor;
GRANT UPDATE ON leases TO corrigenda_editor;
GRANT UPDATE (outcome, gate_report_id) ON batch_edits TO corrigenda_editor;
GRANT UPDATE (finished_at, seconds) ON edit_batches TO corrigenda_editor;
GRANT UPDATE (status, attempts, next_attempt_at, reason, superseded_by) ON edit_requests TO corrigenda_editor;
GRANT UPDATE (until_seq, rows) ON edit_rows TO corrigenda_editor;
GRANT UPDATE (head_snapshot_id, seq, num_batches, num_activations, hold) ON lineages TO corrigenda_editor;
GRANT UPDATE (status, attempts, outcome, gate_report_id, snapshot_id, finished_at) ON removals TO corrigenda_editor;
GRANT UPDATE (status) ON snapshots TO corrigenda_editor;

GRANT SELECT ON
    approvals, audit_events, batch_edits, dead_letters, edit_batches, edit_requests, edit_rows, gate_reports,
    ingest_offsets, leases, outbox, removals, snapshots
    TO corrigenda_control, corrigenda_console, corrigenda_reviewer;
GRANT SELECT ON edit_history, lineage_history, live_edits TO corrigenda_control, corrigenda_console,
    corrigenda_reviewer;
GRANT INSERT ON approvals, removals TO corrigenda_control, corrigenda_console, corrigenda_reviewer;
GRANT UPDATE (champion_snapshot_id, hold) ON lineages TO corrigenda_control, corrigenda_console, corrigenda_reviewer;
GRANT UPDATE (status) ON snapshots TO corrigenda_control, corrigenda_console, corrigenda_reviewer;

GRANT UPDATE ON outbox TO corrigenda_control, corrigenda_console;
GRANT UPDATE (registry_version) ON snapshots TO corrigenda_control;

GRANT UPDATE (status, attempts, next_attempt_at, reason, superseded_by) ON edit_requests
    TO corrigenda_console, corrigenda_reviewer;
GRANT INSERT ON lineages TO corrigenda_console;
GRANT UPDATE (replayed_at) ON dead_letters TO corrigenda_console;
GRANT EXECUTE ON FUNCTION prune_before TO corrigenda_console;

GRANT SELECT ON snapshots TO corrigenda_auditor;
"""

# An approval is written first: whoever may only move statuses approves nothing by that.
GUARDS = """
CREATE FUNCTION refuse_unapproved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM public.approvals a JOIN public.snapshots s ON s.snapshot_id = a.snapshot_id
        WHERE a.lineage_id = NEW.lineage_id AND a.decision = 'approved' AND a.refusal IS NULL AND s.seq >= NEW.seq
    ) THEN
        RAISE EXCEPTION 'snapshot % is refused as approved: nobody has approved it', NEW.snapshot_id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER approved_by_somebody BEFORE INSERT OR UPDATE ON snapshots FOR EACH ROW
    WHEN (NEW.status IN ('approved', 'rolled_back')) EXECUTE FUNCTION refuse_unapproved();
ALTER TABLE snapshots ENABLE ALWAYS TRIGGER approved_by_somebody;
"""

BACK = """
DROP TRIGGER approved_by_somebody ON snapshots;
DROP FUNCTION refuse_unapproved;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {names};
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM {names};
REVOKE USAGE ON SCHEMA public FROM {names};
REVOKE SELECT ON snapshots FROM corrigenda_auditor;
DO $$
BEGIN
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM corrigenda_app, corrigenda_auditor, {names}',
        current_database());
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO PUBLIC', current_database());
END $$;
"""


def upgrade() -> None:
    """Make the roles, and give each its rights in this database."""
    run_script(ROLES.format(names="', '".join(NEW)))
    run_script(DATABASE.format(names=", ".join(ALL)))
    run_script(EVERY_WRITER.format(names=", ".join(NEW)))
    run_script(GRANTS)
    run_script(GUARDS)


def downgrade() -> None:
    """Take the rights away; the roles belong to the cluster and stay, without a password of this database's."""
    run_script(BACK.format(names=", ".join(NEW)))
