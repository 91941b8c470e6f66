"""Where results are sent: URLs with a secret that only the control worker reads, which signs with it."""

from __future__ import annotations

from migrations.script import run_script

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

WEBHOOKS = """
CREATE TABLE webhooks (
    webhook_id uuid DEFAULT uuidv7() CONSTRAINT pk_webhooks PRIMARY KEY,
    owner text NOT NULL,
    lineage_id uuid CONSTRAINT fk_webhooks_lineage_id REFERENCES lineages ON DELETE RESTRICT,
    url text NOT NULL,
    events text[] NOT NULL,
    secret text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed_at timestamptz
);
CREATE INDEX ix_webhooks_owner ON webhooks (owner) WHERE removed_at IS NULL;
CREATE INDEX ix_webhooks_lineage ON webhooks (lineage_id) WHERE removed_at IS NULL;
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON webhooks
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE webhooks ENABLE ALWAYS TRIGGER keeps_history;
GRANT SELECT (webhook_id, owner, lineage_id, url, events, created_at, removed_at), INSERT ON webhooks
    TO corrigenda_web;
GRANT UPDATE (removed_at) ON webhooks TO corrigenda_web;
GRANT SELECT ON webhooks TO corrigenda_control;
"""


def upgrade() -> None:
    """Add the table."""
    run_script(WEBHOOKS)


def downgrade() -> None:
    """Take it away; whoever listened has to register again."""
    run_script("DROP TABLE webhooks")
