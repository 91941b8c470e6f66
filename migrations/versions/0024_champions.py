"""The champion is an approved snapshot of its lineage, whoever writes it and by whatever statement.

Reviewers' logins and the web process may move the champion, because a decision does so. Without this a statement of
their own could make a snapshot live that nobody has approved.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

GUARD = """
CREATE FUNCTION refuse_unapproved_champion() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM public.snapshots s
        WHERE s.snapshot_id = NEW.champion_snapshot_id AND s.lineage_id = NEW.lineage_id AND s.status = 'approved'
    ) THEN
        RAISE EXCEPTION 'snapshot % is refused as champion of %: it is not approved', NEW.champion_snapshot_id, NEW.name
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER champion_is_approved BEFORE UPDATE OF champion_snapshot_id ON lineages FOR EACH ROW
    WHEN (NEW.champion_snapshot_id IS DISTINCT FROM OLD.champion_snapshot_id AND NEW.champion_snapshot_id IS NOT NULL)
    EXECUTE FUNCTION refuse_unapproved_champion();
ALTER TABLE lineages ENABLE ALWAYS TRIGGER champion_is_approved;
"""

BACK = """
DROP TRIGGER champion_is_approved ON lineages;
DROP FUNCTION refuse_unapproved_champion;
"""


def upgrade() -> None:
    """Add the guard."""
    run_script(GUARD)


def downgrade() -> None:
    """Take the guard away."""
    run_script(BACK)
