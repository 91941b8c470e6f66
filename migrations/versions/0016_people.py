"""People with roles and tokens, and the login of the process that serves them: HTTP API and pages.

An actor `person:NAME` showed a token to that process, or logged in to its pages. It alone writes such names, and only
those of people who may decide.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# Roles belong to the cluster: another database may be migrated at the same moment. Nobody may take this one on.
LOGIN = """
DO $$
BEGIN
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'corrigenda_web') THEN
            CREATE ROLE corrigenda_web NOLOGIN;
        END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO corrigenda_web', current_database());
END $$;
GRANT USAGE ON SCHEMA public TO corrigenda_web;
"""

TABLE = """
CREATE TABLE people (
    name text CONSTRAINT pk_people PRIMARY KEY,
    roles text[] NOT NULL
        CONSTRAINT ck_people_roles_known CHECK (roles <@ ARRAY['requester', 'reviewer', 'auditor', 'operator']),
    token_digest text,
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed_at timestamptz
);
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON people
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE people ENABLE ALWAYS TRIGGER keeps_history;
"""

# What a reviewer may do, it may do too: it decides in their names.
GRANTS = """
GRANT SELECT ON people TO corrigenda_web;
GRANT SELECT (name, roles, removed_at) ON people TO corrigenda_app, corrigenda_intake, corrigenda_editor,
    corrigenda_control, corrigenda_console, corrigenda_reviewer, corrigenda_auditor;
GRANT SELECT ON alembic_version, lineages TO corrigenda_web;
GRANT INSERT ON audit_events TO corrigenda_web;
GRANT SELECT, INSERT, UPDATE ON chain_heads TO corrigenda_web;
GRANT INSERT ON outbox TO corrigenda_web;
GRANT SELECT ON
    approvals, audit_events, batch_edits, champion_aliases, dead_letters, edit_batches, edit_requests, edit_rows,
    gate_reports, ingest_offsets, leases, outbox, removals, snapshots, edit_history, lineage_history, live_edits
    TO corrigenda_web;
GRANT INSERT ON approvals, removals TO corrigenda_web;
GRANT UPDATE (champion_snapshot_id, hold) ON lineages TO corrigenda_web;
GRANT UPDATE (status) ON snapshots TO corrigenda_web;
GRANT UPDATE (status, attempts, next_attempt_at, reason, superseded_by) ON edit_requests TO corrigenda_web;
"""

GUARDS = """
CREATE OR REPLACE FUNCTION may_act_as(actor text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(actor = 'reviewer:' || current_reviewer(), false)
        OR actor LIKE 'mlflow-user:%' AND current_user = 'corrigenda_control'
        OR current_user = 'corrigenda_web' AND EXISTS (
            SELECT FROM people WHERE actor = 'person:' || name AND roles && ARRAY['reviewer', 'operator']
        )
$$;
"""

BACK_GUARDS = """
CREATE OR REPLACE FUNCTION may_act_as(actor text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(actor = 'reviewer:' || current_reviewer(), false)
        OR actor LIKE 'mlflow-user:%' AND current_user = 'corrigenda_control'
$$;
"""

TRIGGERS = """
DROP TRIGGER actor_logged_in ON audit_events;
DROP TRIGGER actor_logged_in ON removals;
DROP TRIGGER a_actor_logged_in ON approvals;
CREATE TRIGGER a_actor_logged_in BEFORE INSERT ON approvals FOR EACH ROW
    WHEN (NEW.actor ~ '^({prefixes}):') EXECUTE FUNCTION refuse_false_actor();
CREATE TRIGGER actor_logged_in BEFORE INSERT ON removals FOR EACH ROW
    WHEN (NEW.actor ~ '^({prefixes}):') EXECUTE FUNCTION refuse_false_actor();
CREATE TRIGGER actor_logged_in BEFORE INSERT ON audit_events FOR EACH ROW
    WHEN (NEW.actor ~ '^({prefixes}):') EXECUTE FUNCTION refuse_false_actor();
ALTER TABLE approvals ENABLE ALWAYS TRIGGER a_actor_logged_in;
ALTER TABLE removals ENABLE ALWAYS TRIGGER actor_logged_in;
ALTER TABLE audit_events ENABLE ALWAYS TRIGGER actor_logged_in;
"""

BACK = """
DROP TABLE people;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM corrigenda_web;
REVOKE USAGE ON SCHEMA public FROM corrigenda_web;
DO $$
BEGIN
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM corrigenda_web', current_database());
END $$;
"""


def upgrade() -> None:
    """Add people and the login, and let that login write the names of people who may decide."""
    run_script(LOGIN)
    run_script(TABLE)
    run_script(GRANTS)
    run_script(GUARDS)
    run_script(TRIGGERS.format(prefixes="reviewer|mlflow-user|person"))


def downgrade() -> None:
    """Take people and the login's rights away; lines that name people stay as they are."""
    run_script(TRIGGERS.format(prefixes="reviewer|mlflow-user"))
    run_script(BACK_GUARDS)
    run_script(BACK)
