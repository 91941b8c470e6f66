"""Who has to approve a lineage's snapshots: a policy beside the rule that earlier versions read.

A snapshot that needs two people has an approval `endorsed` of the first. `policy:automatic` approves what a policy
lets go live without a person; the control worker alone writes it, and only for a lineage whose policy says so.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

BEFORE = "^(reviewer|mlflow-user|person):"
NAMED = "^(reviewer|mlflow-user|person|policy):"
GUARDED = ("approvals", "removals", "audit_events")

POLICIES = """
ALTER TABLE lineages ADD COLUMN approval_policy jsonb;
GRANT UPDATE (approval_policy) ON lineages TO corrigenda_app, corrigenda_console;

CREATE OR REPLACE FUNCTION may_act_as(actor text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(actor = 'reviewer:' || current_reviewer(), false)
        OR (actor LIKE 'mlflow-user:%' OR actor = 'policy:automatic') AND current_user = 'corrigenda_control'
        OR current_user = 'corrigenda_web' AND EXISTS (
            SELECT FROM people WHERE actor = 'person:' || name AND roles && ARRAY['reviewer', 'operator']
        )
$$;

-- The last approval of several comes after the others', and nobody's stands for two people's.
CREATE FUNCTION refuse_against_policy() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    policy jsonb := (SELECT approval_policy FROM public.lineages WHERE lineage_id = NEW.lineage_id);
    others integer;
BEGIN
    IF NEW.actor = 'policy:automatic' THEN
        IF (policy ->> 'approvers')::integer = 0 OR jsonb_typeof(policy -> 'automatic_below') = 'object' THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'an approval without a person is refused: this lineage has no policy that allows it'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT count(DISTINCT lower(split_part(actor, ':', 2))) INTO others FROM public.approvals
    WHERE snapshot_id = NEW.snapshot_id AND decision = 'endorsed' AND refusal IS NULL
        AND lower(split_part(actor, ':', 2)) <> lower(split_part(NEW.actor, ':', 2));
    IF others + 1 < coalesce((policy ->> 'approvers')::integer, 1) THEN
        RAISE EXCEPTION 'the approval of % is refused: this lineage asks for % people',
            NEW.actor, policy ->> 'approvers' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER d_policy_is_met BEFORE INSERT ON approvals FOR EACH ROW
    WHEN (NEW.decision = 'approved' AND NEW.refusal IS NULL) EXECUTE FUNCTION refuse_against_policy();
ALTER TABLE approvals ENABLE ALWAYS TRIGGER d_policy_is_met;
"""

BACK = """
DROP TRIGGER d_policy_is_met ON approvals;
DROP FUNCTION refuse_against_policy;
CREATE OR REPLACE FUNCTION may_act_as(actor text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(actor = 'reviewer:' || current_reviewer(), false)
        OR actor LIKE 'mlflow-user:%' AND current_user = 'corrigenda_control'
        OR current_user = 'corrigenda_web' AND EXISTS (
            SELECT FROM people WHERE actor = 'person:' || name AND roles && ARRAY['reviewer', 'operator']
        )
$$;
ALTER TABLE lineages DROP COLUMN approval_policy;
"""


def upgrade() -> None:
    """Add the policy, let no process pretend that a policy approved, and hold approvals to their number."""
    run_script(POLICIES)
    run_script(_guards(NAMED))


def downgrade() -> None:
    """Take policies away: of each the rule stays, which says whose decisions are taken."""
    run_script(_guards(BEFORE))
    run_script(BACK)


def _guards(pattern: str) -> str:
    """Return what makes the triggers of revision 0016 look at these names."""
    return "".join(
        f"""
DROP TRIGGER {name} ON {table};
CREATE TRIGGER {name} BEFORE INSERT ON {table} FOR EACH ROW
    WHEN (NEW.actor ~ '{pattern}') EXECUTE FUNCTION refuse_false_actor();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name};
"""
        for table in GUARDED
        for name in ["a_actor_logged_in" if table == "approvals" else "actor_logged_in"]
    )
