"""What operators do on the pages and by the HTTP API, in their names, and what they may not.

Since revision 0016 the web process wrote any line in an operator's name, decisions too. Now it decides in the names of
reviewers only, and an operator's name stands in lines about operating alone. A worker writes a person's name for what
that person asked of the same lineage, and only the worker that carries removals out.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

GUARDS = """
CREATE OR REPLACE FUNCTION may_act_as(actor text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(actor = 'reviewer:' || current_reviewer(), false)
        OR (actor LIKE 'mlflow-user:%' OR actor = 'policy:automatic') AND current_user = 'corrigenda_control'
        OR current_user = 'corrigenda_web' AND EXISTS (
            SELECT FROM people WHERE actor = 'person:' || name AND 'reviewer' = ANY (roles)
        )
$$;

CREATE FUNCTION may_operate_as(actor text, action text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT current_user = 'corrigenda_web'
        AND action IN (
            'lineage:held', 'lineage:resumed', 'edit:released', 'side_effect:resent', 'side_effect:closed'
        )
        AND EXISTS (SELECT FROM people WHERE actor = 'person:' || name AND 'operator' = ANY (roles))
$$;

-- `corrigenda_app` is the login of processes of before.
CREATE FUNCTION carries_out_for(actor text, action text, chain text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT current_user IN ('corrigenda_editor', 'corrigenda_app') AND action LIKE 'edit:%' AND EXISTS (
        SELECT FROM removals r JOIN lineages l USING (lineage_id) WHERE r.actor = $1 AND l.name = $3
    )
$$;

CREATE OR REPLACE FUNCTION refuse_false_actor() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    line jsonb := to_jsonb(NEW);
BEGIN
    IF may_act_as(NEW.actor) OR TG_TABLE_NAME = 'audit_events' AND (
        may_operate_as(NEW.actor, line ->> 'action') OR carries_out_for(NEW.actor, line ->> 'action', line ->> 'chain')
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the actor % is refused: % logged in', NEW.actor, session_user
        USING ERRCODE = 'insufficient_privilege';
END $$;
"""

# Whoever calls it owes again what was given up, and changes nothing else of the outbox. Of a stream, what a later item
# has overtaken is closed instead.
RESEND = """
CREATE FUNCTION resend_given_up(chosen uuid[])
RETURNS TABLE (outbox_id uuid, kind text, dedup_key text, payload jsonb, is_closed boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE public.outbox o SET
        done_at = CASE WHEN found.is_overtaken THEN clock_timestamp() END,
        given_up_at = CASE WHEN found.is_overtaken THEN o.given_up_at END,
        attempts = CASE WHEN found.is_overtaken THEN o.attempts ELSE 0 END,
        next_attempt_at = CASE WHEN found.is_overtaken THEN o.next_attempt_at ELSE clock_timestamp() END
    FROM (
        SELECT g.outbox_id, EXISTS (
            SELECT FROM public.outbox later
            WHERE later.stream = g.stream AND later.outbox_id > g.outbox_id AND later.done_at IS NOT NULL
        ) AS is_overtaken
        FROM public.outbox g
        WHERE g.given_up_at IS NOT NULL AND g.done_at IS NULL AND (chosen IS NULL OR g.outbox_id = ANY (chosen))
        FOR UPDATE
    ) found
    WHERE found.outbox_id = o.outbox_id
    RETURNING o.outbox_id, o.kind, o.dedup_key, o.payload, found.is_overtaken
$$;
REVOKE ALL ON FUNCTION resend_given_up FROM PUBLIC;
GRANT EXECUTE ON FUNCTION resend_given_up TO corrigenda_console, corrigenda_web, corrigenda_app;
"""

# The page of what waits looks at these alone, however many snapshots there are.
UNDECIDED = """
CREATE INDEX ix_snapshots_undecided ON snapshots (lineage_id, seq) WHERE status IN ('candidate', 'rolled_back');
"""

BACK = """
DROP INDEX ix_snapshots_undecided;
CREATE OR REPLACE FUNCTION may_act_as(actor text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(actor = 'reviewer:' || current_reviewer(), false)
        OR (actor LIKE 'mlflow-user:%' OR actor = 'policy:automatic') AND current_user = 'corrigenda_control'
        OR current_user = 'corrigenda_web' AND EXISTS (
            SELECT FROM people WHERE actor = 'person:' || name AND roles && ARRAY['reviewer', 'operator']
        )
$$;
CREATE OR REPLACE FUNCTION refuse_false_actor() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF may_act_as(NEW.actor) OR (
        TG_TABLE_NAME = 'audit_events' AND to_jsonb(NEW) ->> 'action' LIKE 'edit:%'
        AND EXISTS (SELECT FROM public.removals r WHERE r.actor = NEW.actor)
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the actor % is refused: % logged in', NEW.actor, session_user
        USING ERRCODE = 'insufficient_privilege';
END $$;
DROP FUNCTION may_operate_as, carries_out_for, resend_given_up;
"""


def upgrade() -> None:
    """Hold operators' names to what operators do, and let the web process owe again what was given up."""
    run_script(GUARDS)
    run_script(RESEND)
    run_script(UNDECIDED)


def downgrade() -> None:
    """Take them away; lines that name operators stay as they are."""
    run_script(BACK)
