"""Who decides is who logged in: an actor `reviewer:NAME` is written by that reviewer's own login only.

`mlflow-user:NAME` logged in to an MLflow server that tells who asks; the control worker alone writes it.

A reviewer is a database login that is a member of `corrigenda_reviewer` (`corrigenda reviewer add NAME`). Whoever else
acts is named as claimed. A lineage may refuse claimed names, and what somebody asked for themselves.

Approvals of before were never authenticated, so they are claimed; lines of the audit chains stay as they are.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

RULES = """
ALTER TABLE lineages ADD COLUMN approval_rule text NOT NULL DEFAULT 'anyone',
    ADD CONSTRAINT ck_lineages_approval_rule_known CHECK (approval_rule IN ('anyone', 'authenticated', 'four_eyes'));
GRANT UPDATE (approval_rule) ON lineages TO corrigenda_app, corrigenda_console;
UPDATE approvals SET is_claimed = true WHERE NOT is_claimed;
COMMENT ON COLUMN edit_history.approval_is_claimed IS
'Whether the approver''s name is only claimed; a reviewer who logged in is not.';
"""

# A superuser is a member of every role, and no reviewer for that. `session_user` is who logged in, whatever role they
# took on and whoever's function this runs in.
GUARDS = """
CREATE FUNCTION current_reviewer() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT rolname::text FROM pg_roles
    WHERE rolname = session_user AND NOT rolsuper AND pg_has_role(oid, 'corrigenda_reviewer', 'USAGE')
$$;

-- The control worker alone speaks for people who logged in to MLflow.
CREATE FUNCTION may_act_as(actor text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(actor = 'reviewer:' || current_reviewer(), false)
        OR actor LIKE 'mlflow-user:%' AND current_user = 'corrigenda_control'
$$;

-- A worker that carries out what somebody asked for writes lines about edits in their name.
CREATE FUNCTION refuse_false_actor() RETURNS trigger LANGUAGE plpgsql
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

-- Processes of the version before call some names known that they only read somewhere.
CREATE FUNCTION mark_claimed() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    NEW.is_claimed := NOT may_act_as(NEW.actor);
    RETURN NEW;
END $$;

CREATE FUNCTION refuse_claimed_decision() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF (SELECT approval_rule FROM public.lineages WHERE lineage_id = NEW.lineage_id) = 'anyone' THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a decision of % is refused: this lineage takes those of reviewers who log in', NEW.actor
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER a_actor_logged_in BEFORE INSERT ON approvals FOR EACH ROW
    WHEN (NEW.actor ~ '^(reviewer|mlflow-user):') EXECUTE FUNCTION refuse_false_actor();
CREATE TRIGGER b_others_are_claimed BEFORE INSERT ON approvals FOR EACH ROW
    WHEN (NOT NEW.is_claimed) EXECUTE FUNCTION mark_claimed();
CREATE TRIGGER c_claims_may_decide BEFORE INSERT ON approvals FOR EACH ROW
    WHEN (NEW.is_claimed AND NEW.refusal IS NULL) EXECUTE FUNCTION refuse_claimed_decision();
CREATE TRIGGER actor_logged_in BEFORE INSERT ON removals FOR EACH ROW
    WHEN (NEW.actor ~ '^(reviewer|mlflow-user):') EXECUTE FUNCTION refuse_false_actor();
CREATE TRIGGER actor_logged_in BEFORE INSERT ON audit_events FOR EACH ROW
    WHEN (NEW.actor ~ '^(reviewer|mlflow-user):') EXECUTE FUNCTION refuse_false_actor();
ALTER TABLE approvals ENABLE ALWAYS TRIGGER a_actor_logged_in;
ALTER TABLE approvals ENABLE ALWAYS TRIGGER b_others_are_claimed;
ALTER TABLE approvals ENABLE ALWAYS TRIGGER c_claims_may_decide;
ALTER TABLE removals ENABLE ALWAYS TRIGGER actor_logged_in;
ALTER TABLE audit_events ENABLE ALWAYS TRIGGER actor_logged_in;
"""

BACK = """
DROP TRIGGER actor_logged_in ON audit_events;
DROP TRIGGER actor_logged_in ON removals;
DROP TRIGGER a_actor_logged_in ON approvals;
DROP TRIGGER b_others_are_claimed ON approvals;
DROP TRIGGER c_claims_may_decide ON approvals;
DROP FUNCTION refuse_false_actor, mark_claimed, refuse_claimed_decision, may_act_as, current_reviewer;
ALTER TABLE lineages DROP COLUMN approval_rule;
COMMENT ON COLUMN edit_history.approval_is_claimed IS 'Whether the approver''s name is only what a tag claims.';
"""


def upgrade() -> None:
    """Add the rule and the guards, and call approvals of before what they are."""
    run_script(RULES)
    run_script(GUARDS)


def downgrade() -> None:
    """Take rule and guards away; approvals stay as claimed as they are."""
    run_script(BACK)
