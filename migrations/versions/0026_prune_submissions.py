"""What the HTTP API noted of corrections may go with time, once each is an edit, a dead letter or was never sent.

Only the function takes notes away. Edits stay, and with them the ids by which a second try is known.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

PRUNE = """
-- No login may delete; the setting keeps the owner from doing it by mistake, as the triggers of other tables do.
DROP TRIGGER keeps_history ON submissions;
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON submissions FOR EACH STATEMENT
    WHEN (current_setting('corrigenda.pruning', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION refuse_change();
ALTER TABLE submissions ENABLE ALWAYS TRIGGER keeps_history;
CREATE INDEX ix_submissions_accepted ON submissions (accepted_at);

CREATE FUNCTION prune_submissions(cut timestamptz, OUT num_submissions bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET corrigenda.pruning = 'on' AS $$
BEGIN
    IF cut IS NULL OR cut > clock_timestamp() - interval '1 hour' THEN
        RAISE EXCEPTION 'expected to prune what is older than an hour, got %', cut USING ERRCODE = 'check_violation';
    END IF;
    DELETE FROM public.submissions s WHERE accepted_at < cut AND (
        produced_at IS NULL
        OR EXISTS (
            SELECT FROM public.edit_requests e WHERE e.lineage_id = s.lineage_id AND e.request_id = s.request_id
        )
        OR EXISTS (
            SELECT FROM public.dead_letters d
            WHERE d.topic = s.topic AND d.partition = s.partition AND d."offset" = s."offset"
        )
    );
    GET DIAGNOSTICS num_submissions = ROW_COUNT;
END $$;
REVOKE ALL ON FUNCTION prune_submissions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prune_submissions TO corrigenda_console, corrigenda_app;
"""

BACK = """
DROP FUNCTION prune_submissions;
DROP INDEX ix_submissions_accepted;
DROP TRIGGER keeps_history ON submissions;
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON submissions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE submissions ENABLE ALWAYS TRIGGER keeps_history;
"""


def upgrade() -> None:
    """Add the function, and the index by which it finds what is old."""
    run_script(PRUNE)


def downgrade() -> None:
    """Take both away; notes that are gone stay gone."""
    run_script(BACK)
