"""A ledger is solved anew, and a lineage's upkeep changed, on the pages and by the HTTP API, in an operator's name.

The name of an operator stands in a wish that takes no edit out. A reviewer's stood there before: revision 0025.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

GUARDS = """
CREATE OR REPLACE FUNCTION may_operate_as(actor text, action text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT current_user = 'corrigenda_web'
        AND action IN (
            'lineage:held', 'lineage:resumed', 'edit:released', 'side_effect:resent', 'side_effect:closed',
            'rekeying:requested', 'lineage:upkeep_changed'
        )
        AND EXISTS (SELECT FROM people WHERE actor = 'person:' || name AND 'operator' = ANY (roles))
$$;

CREATE OR REPLACE FUNCTION refuse_false_actor() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    line jsonb := to_jsonb(NEW);
BEGIN
    IF may_act_as(NEW.actor) OR TG_TABLE_NAME = 'audit_events' AND (
        may_operate_as(NEW.actor, line ->> 'action') OR carries_out_for(NEW.actor, line ->> 'action', line ->> 'chain')
    ) OR TG_TABLE_NAME = 'removals' AND line ->> 'resolving' IS NOT NULL
        AND line -> 'edit_ids' = '[]' AND line -> 'reinstated_ids' = '[]'
        AND may_operate_as(NEW.actor, 'rekeying:requested')
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the actor % is refused: % logged in', NEW.actor, session_user
        USING ERRCODE = 'insufficient_privilege';
END $$;
GRANT UPDATE (upkeep) ON lineages TO corrigenda_web;
"""

BACK = """
REVOKE UPDATE (upkeep) ON lineages FROM corrigenda_web;
CREATE OR REPLACE FUNCTION may_operate_as(actor text, action text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT current_user = 'corrigenda_web'
        AND action IN (
            'lineage:held', 'lineage:resumed', 'edit:released', 'side_effect:resent', 'side_effect:closed'
        )
        AND EXISTS (SELECT FROM people WHERE actor = 'person:' || name AND 'operator' = ANY (roles))
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


def upgrade() -> None:
    """Let the web process owe a ledger solved anew, and change a lineage's upkeep, in an operator's name."""
    run_script(GUARDS)


def downgrade() -> None:
    """Take that away; lines that name operators stay as they are."""
    run_script(BACK)
