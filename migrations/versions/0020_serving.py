"""The login of servers that follow a lineage's champion: they read what a version has to be and write nothing."""

from __future__ import annotations

from migrations.script import run_script

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

# Roles belong to the cluster: another database may be migrated at the same moment. Nobody may take this one on.
LOGIN = """
DO $$
BEGIN
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'corrigenda_serving') THEN
            CREATE ROLE corrigenda_serving NOLOGIN;
        END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO corrigenda_serving', current_database());
END $$;
GRANT USAGE ON SCHEMA public TO corrigenda_serving;
GRANT SELECT (lineage_id, name) ON lineages TO corrigenda_serving;
GRANT SELECT (snapshot_id, lineage_id, seq, digest, package_digest, registry_version, status) ON snapshots
    TO corrigenda_serving;
"""

BACK = """
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM corrigenda_serving;
REVOKE USAGE ON SCHEMA public FROM corrigenda_serving;
DO $$
BEGIN
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM corrigenda_serving', current_database());
END $$;
"""


def upgrade() -> None:
    """Make the role and let it read these columns."""
    run_script(LOGIN)


def downgrade() -> None:
    """Take the rights away; the role belongs to the cluster and stays."""
    run_script(BACK)
