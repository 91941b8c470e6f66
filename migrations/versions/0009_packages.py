"""Digests of the files of model versions, and what the alias `champion` was last written as.

Versions of before have no digest and stay as they are: see DECISIONS.md for how they load.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLES = """
ALTER TABLE snapshots ADD COLUMN package_digest text;
CREATE TABLE champion_aliases (
    lineage_id uuid PRIMARY KEY CONSTRAINT fk_champion_aliases_lineage_id REFERENCES lineages ON DELETE RESTRICT,
    written text[] NOT NULL DEFAULT '{}',
    putting_back jsonb
);
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON champion_aliases
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE champion_aliases ENABLE ALWAYS TRIGGER keeps_history;
GRANT UPDATE (package_digest) ON snapshots TO corrigenda_app, corrigenda_control;
GRANT SELECT, INSERT, UPDATE ON champion_aliases TO corrigenda_app, corrigenda_control;
GRANT SELECT ON champion_aliases TO corrigenda_console, corrigenda_reviewer, corrigenda_auditor;
"""


def upgrade() -> None:
    """Add the column, and the table with its guard and its grants."""
    run_script(TABLES)


def downgrade() -> None:
    """Take both away: what was registered meanwhile is again checked against itself only."""
    run_script("DROP TABLE champion_aliases; ALTER TABLE snapshots DROP COLUMN package_digest")
