"""Corrections that came through the HTTP API, and the indexes by which it answers."""

from __future__ import annotations

from migrations.script import run_script

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

SUBMISSIONS = """
CREATE TABLE submissions (
    submission_id uuid DEFAULT uuidv7() CONSTRAINT pk_submissions PRIMARY KEY,
    lineage_id uuid NOT NULL CONSTRAINT fk_submissions_lineage_id REFERENCES lineages ON DELETE RESTRICT,
    request_id text NOT NULL,
    submitted_by text NOT NULL,
    idempotency_key text,
    call_digest text NOT NULL,
    body_digest text NOT NULL,
    occurred_at timestamptz NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    produced_at timestamptz,
    topic text,
    partition integer,
    "offset" bigint,
    CONSTRAINT uq_submissions_lineage_id_request_id UNIQUE (lineage_id, request_id)
);
CREATE INDEX ix_submissions_key ON submissions (submitted_by, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON submissions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE submissions ENABLE ALWAYS TRIGGER keeps_history;
GRANT SELECT, INSERT ON submissions TO corrigenda_web;
GRANT UPDATE (produced_at, topic, partition, "offset") ON submissions TO corrigenda_web;
GRANT SELECT ON submissions TO corrigenda_control, corrigenda_console, corrigenda_reviewer;

CREATE INDEX ix_edit_requests_oldest ON edit_requests (lineage_id, received_at) WHERE status = 'received';
CREATE INDEX ix_edit_requests_listed ON edit_requests (lineage_id, status, edit_id);
CREATE INDEX ix_edit_requests_submitted ON edit_requests (submitted_by, edit_id) WHERE submitted_by IS NOT NULL;
CREATE INDEX ix_dead_letters_place ON dead_letters (topic, partition, "offset");
"""

BACK = """
DROP TABLE submissions;
DROP INDEX ix_edit_requests_oldest, ix_edit_requests_listed, ix_edit_requests_submitted, ix_dead_letters_place;
"""


def upgrade() -> None:
    """Add the table and the indexes."""
    run_script(SUBMISSIONS)


def downgrade() -> None:
    """Take them away; edits stay, and what their senders' keys were is forgotten."""
    run_script(BACK)
