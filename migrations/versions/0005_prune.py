"""What may go with time: done outbox rows, and the bytes of dead letters. The rows and reasons of letters stay.

The application may not delete or change either by itself. It calls one function, which refuses anything young and
whatever is still owed.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from migrations.script import run_script
from pipeline.domain.errors import Misconfigured

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The caller's temporary tables come last, and are not asked for: the function has its owner's rights.
# A letter whose announcement is still owed keeps its bytes: the relay reads them when it announces.
PRUNE = """
ALTER TABLE dead_letters ADD COLUMN pruned_at timestamptz;

CREATE FUNCTION prune_before(cut timestamptz, OUT num_outbox bigint, OUT num_letters bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF cut IS NULL OR cut > clock_timestamp() - interval '1 hour' THEN
        RAISE EXCEPTION 'expected to prune what is older than an hour, got %', cut USING ERRCODE = 'check_violation';
    END IF;
    DELETE FROM public.outbox WHERE done_at < cut;
    GET DIAGNOSTICS num_outbox = ROW_COUNT;
    UPDATE public.dead_letters l SET value = NULL, headers = '[]', pruned_at = clock_timestamp()
    WHERE created_at < cut AND pruned_at IS NULL AND (value IS NOT NULL OR headers <> '[]') AND NOT EXISTS (
        SELECT FROM public.outbox o WHERE o.dedup_key = 'dead_letter:' || l.dead_letter_id AND o.done_at IS NULL
    );
    GET DIAGNOSTICS num_letters = ROW_COUNT;
END $$;

REVOKE ALL ON FUNCTION prune_before FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prune_before TO corrigenda_app;
"""


def upgrade() -> None:
    """Add the function, and the column that says when a letter lost its bytes."""
    run_script(PRUNE)


def downgrade() -> None:
    """Take both away, unless a letter without bytes would then read as one that never had any."""
    if op.get_bind().scalar(text("SELECT EXISTS (SELECT FROM dead_letters WHERE pruned_at IS NOT NULL)")):
        raise Misconfigured("expected a history in which no dead letter was pruned, got some in dead_letters")
    run_script("DROP FUNCTION prune_before; ALTER TABLE dead_letters DROP COLUMN pruned_at")
