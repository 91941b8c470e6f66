"""Ledgers that are solved anew: what a lineage's upkeep asks for, and the prior's strength as a state.

An edit worker may owe such work to its lineage, and nothing else: columns that say which edits leave have defaults, and
it may not write them.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from migrations.script import run_script
from pipeline.domain.errors import Misconfigured

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

STATE = """
ALTER TABLE lineages ADD COLUMN upkeep jsonb;
ALTER TABLE snapshots ADD COLUMN prior_strength double precision;
ALTER TABLE removals ADD COLUMN resolving jsonb, ADD COLUMN replaced_rows jsonb,
    ALTER COLUMN edit_ids SET DEFAULT '[]', ALTER COLUMN reinstated_ids SET DEFAULT '[]';
CREATE INDEX ix_removals_resolving ON removals (lineage_id, requested_at) WHERE resolving IS NOT NULL;
-- A worker of before takes such work for a removal of nothing, and knows of no strength: it may do neither.
ALTER TABLE removals ADD CONSTRAINT ck_removals_solved_anew_is_made
    CHECK (resolving IS NULL OR status <> 'done' OR snapshot_id IS NOT NULL);
CREATE FUNCTION refuse_lost_strength() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NEW.prior_strength IS NULL AND EXISTS (
        SELECT FROM snapshots s WHERE s.snapshot_id = NEW.parent_id AND s.prior_strength IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'a snapshot keeps the strength of the prior of its parent %', NEW.parent_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keeps_strength BEFORE INSERT ON snapshots FOR EACH ROW EXECUTE FUNCTION refuse_lost_strength();
GRANT UPDATE (upkeep) ON lineages TO corrigenda_console;
GRANT INSERT (lineage_id, actor, reason, resolving), UPDATE (replaced_rows) ON removals TO corrigenda_editor;
"""

BACK = """
REVOKE INSERT (lineage_id, actor, reason, resolving), UPDATE (replaced_rows) ON removals FROM corrigenda_editor;
REVOKE UPDATE (upkeep) ON lineages FROM corrigenda_console;
DROP TRIGGER keeps_strength ON snapshots;
DROP FUNCTION refuse_lost_strength();
ALTER TABLE removals DROP CONSTRAINT ck_removals_solved_anew_is_made;
DROP INDEX ix_removals_resolving;
ALTER TABLE removals DROP COLUMN resolving, DROP COLUMN replaced_rows,
    ALTER COLUMN edit_ids DROP DEFAULT, ALTER COLUMN reinstated_ids DROP DEFAULT;
ALTER TABLE snapshots DROP COLUMN prior_strength;
ALTER TABLE lineages DROP COLUMN upkeep;
"""


def upgrade() -> None:
    """Add the columns, and the rights to write them."""
    run_script(STATE)


def downgrade() -> None:
    """Take them away, if no ledger was to be solved anew: an earlier version would take that for a removal."""
    run_script("LOCK TABLE removals IN ACCESS EXCLUSIVE MODE")
    if op.get_bind().scalar(text("SELECT EXISTS (SELECT FROM removals WHERE resolving IS NOT NULL)")):
        raise Misconfigured(
            "expected no ledger that was to be solved anew, which version 0026 knows nothing of; got some in removals"
        )
    run_script(BACK)
