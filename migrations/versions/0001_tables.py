"""Every table, as `pipeline/adapters/sql/database/tables.py` describes them (`alembic check` compares).

Needs PostgreSQL 18 for `uuidv7()`. Going down drops the tables, and refuses while any of them holds a row.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from migrations.script import run_script
from pipeline.domain.errors import Misconfigured

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NEEDED_VERSION = 180000

TABLES = """
CREATE TABLE audit_events (
    chain text NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    payload text NOT NULL,
    prev_hash text NOT NULL,
    hash text NOT NULL,
    CONSTRAINT pk_audit_events PRIMARY KEY (chain, seq),
    CONSTRAINT uq_audit_events_chain_prev_hash UNIQUE (chain, prev_hash)
);
CREATE INDEX ix_audit_events_subject ON audit_events (subject);

CREATE TABLE chain_heads (
    chain text NOT NULL,
    seq bigint NOT NULL,
    hash text NOT NULL,
    CONSTRAINT pk_chain_heads PRIMARY KEY (chain)
);

CREATE TABLE dead_letters (
    dead_letter_id uuid NOT NULL DEFAULT uuidv7(),
    cluster_id text NOT NULL,
    topic_id text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key bytea,
    value bytea,
    headers jsonb NOT NULL,
    error text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    replayed_at timestamptz,
    CONSTRAINT pk_dead_letters PRIMARY KEY (dead_letter_id),
    CONSTRAINT uq_dead_letters_cluster_id_topic_id_partition_offset UNIQUE (cluster_id, topic_id, partition, "offset")
);

CREATE TABLE ingest_offsets (
    cluster_id text NOT NULL,
    topic_id text NOT NULL,
    partition integer NOT NULL,
    topic text NOT NULL,
    epoch bigint NOT NULL,
    next_offset bigint NOT NULL,
    num_received bigint NOT NULL DEFAULT 0,
    num_duplicates bigint NOT NULL DEFAULT 0,
    num_refused bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pk_ingest_offsets PRIMARY KEY (cluster_id, topic_id, partition)
);

CREATE TABLE lineages (
    lineage_id uuid NOT NULL DEFAULT uuidv7(),
    name text NOT NULL,
    task text NOT NULL,
    base_ref text NOT NULL,
    base_digest text NOT NULL,
    editor jsonb NOT NULL,
    editor_digest text NOT NULL,
    policy jsonb NOT NULL,
    prior jsonb NOT NULL,
    baseline jsonb NOT NULL,
    head_snapshot_id uuid,
    champion_snapshot_id uuid,
    seq integer NOT NULL DEFAULT 0,
    num_batches integer NOT NULL DEFAULT 0,
    hold text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pk_lineages PRIMARY KEY (lineage_id),
    CONSTRAINT ck_lineages_name_usable CHECK (name !~ '[/:[:space:]]' AND name <> 'system'),
    CONSTRAINT ck_lineages_task_known CHECK (task IN ('causal', 'seq2seq', 'classifier')),
    CONSTRAINT uq_lineages_name UNIQUE (name)
);

CREATE TABLE outbox (
    outbox_id uuid NOT NULL DEFAULT uuidv7(),
    dedup_key text NOT NULL,
    kind text NOT NULL,
    payload jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at timestamptz,
    error text,
    CONSTRAINT pk_outbox PRIMARY KEY (outbox_id),
    CONSTRAINT uq_outbox_dedup_key UNIQUE (dedup_key)
);
CREATE INDEX ix_outbox_due ON outbox (next_attempt_at) WHERE done_at IS NULL;

CREATE TABLE edit_batches (
    batch_id uuid NOT NULL DEFAULT uuidv7(),
    lineage_id uuid NOT NULL,
    ordinal integer NOT NULL,
    parent_snapshot_id uuid,
    lease_epoch bigint NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    seconds jsonb,
    CONSTRAINT pk_edit_batches PRIMARY KEY (batch_id),
    CONSTRAINT uq_edit_batches_lineage_id_ordinal UNIQUE (lineage_id, ordinal),
    CONSTRAINT fk_edit_batches_lineage_id FOREIGN KEY(lineage_id) REFERENCES lineages (lineage_id) ON DELETE RESTRICT
);

CREATE TABLE edit_requests (
    edit_id uuid NOT NULL DEFAULT uuidv7(),
    lineage_id uuid NOT NULL,
    request_id text NOT NULL,
    payload_digest text NOT NULL,
    conflict_key text NOT NULL,
    prompt text NOT NULL,
    subject text,
    relation text,
    target_new text NOT NULL,
    target_true text,
    rephrases jsonb NOT NULL,
    locality jsonb NOT NULL,
    portability jsonb NOT NULL,
    source text,
    submitted_by text,
    occurred_at timestamptz NOT NULL,
    cluster_id text NOT NULL,
    topic_id text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    status text NOT NULL DEFAULT 'received',
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text,
    superseded_by uuid,
    CONSTRAINT pk_edit_requests PRIMARY KEY (edit_id),
    CONSTRAINT uq_edit_requests_lineage_id_request_id UNIQUE (lineage_id, request_id),
    CONSTRAINT uq_edit_requests_cluster_id_topic_id_partition_offset UNIQUE (cluster_id, topic_id, partition, "offset"),
    CONSTRAINT ck_edit_requests_status_known
        CHECK (status IN ('received', 'claimed', 'snapshotted', 'rejected', 'superseded', 'reverted', 'dead')),
    CONSTRAINT fk_edit_requests_lineage_id FOREIGN KEY(lineage_id) REFERENCES lineages (lineage_id) ON DELETE RESTRICT,
    CONSTRAINT fk_edit_requests_superseded_by FOREIGN KEY(superseded_by)
        REFERENCES edit_requests (edit_id) ON DELETE RESTRICT
);
CREATE INDEX ix_edit_requests_conflict_key ON edit_requests USING hash (conflict_key);
CREATE INDEX ix_edit_requests_waiting ON edit_requests (lineage_id, next_attempt_at) WHERE status = 'received';

CREATE TABLE gate_reports (
    gate_report_id uuid NOT NULL DEFAULT uuidv7(),
    lineage_id uuid NOT NULL,
    snapshot_digest text,
    verdict text NOT NULL,
    policy_digest text NOT NULL,
    probe_set_digest text NOT NULL,
    report jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pk_gate_reports PRIMARY KEY (gate_report_id),
    CONSTRAINT fk_gate_reports_lineage_id FOREIGN KEY(lineage_id) REFERENCES lineages (lineage_id) ON DELETE RESTRICT
);

CREATE TABLE leases (
    lineage_id uuid NOT NULL,
    owner text NOT NULL,
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT pk_leases PRIMARY KEY (lineage_id),
    CONSTRAINT fk_leases_lineage_id FOREIGN KEY(lineage_id) REFERENCES lineages (lineage_id) ON DELETE RESTRICT
);

CREATE TABLE batch_edits (
    batch_id uuid NOT NULL,
    edit_id uuid NOT NULL,
    outcome text,
    gate_report_id uuid,
    CONSTRAINT pk_batch_edits PRIMARY KEY (batch_id, edit_id),
    CONSTRAINT fk_batch_edits_batch_id FOREIGN KEY(batch_id) REFERENCES edit_batches (batch_id) ON DELETE RESTRICT,
    CONSTRAINT fk_batch_edits_edit_id FOREIGN KEY(edit_id) REFERENCES edit_requests (edit_id) ON DELETE RESTRICT,
    CONSTRAINT fk_batch_edits_gate_report_id FOREIGN KEY(gate_report_id)
        REFERENCES gate_reports (gate_report_id) ON DELETE RESTRICT
);
CREATE INDEX ix_batch_edits_edit_id ON batch_edits (edit_id);

CREATE TABLE snapshots (
    snapshot_id uuid NOT NULL DEFAULT uuidv7(),
    lineage_id uuid NOT NULL,
    seq integer NOT NULL,
    parent_id uuid,
    basis text NOT NULL,
    delta jsonb NOT NULL,
    delta_digest text NOT NULL,
    accumulator jsonb,
    digest text NOT NULL,
    status text NOT NULL DEFAULT 'candidate',
    gate_report_id uuid NOT NULL,
    batch_id uuid,
    registry_version text,
    lease_epoch bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pk_snapshots PRIMARY KEY (snapshot_id),
    CONSTRAINT uq_snapshots_lineage_id_seq UNIQUE (lineage_id, seq),
    CONSTRAINT uq_snapshots_lineage_id_parent_id UNIQUE NULLS NOT DISTINCT (lineage_id, parent_id),
    CONSTRAINT ck_snapshots_status_known
        CHECK (status IN ('candidate', 'approved', 'rejected', 'retired', 'rolled_back')),
    CONSTRAINT ck_snapshots_basis_known CHECK (basis IN ('parent', 'base')),
    CONSTRAINT fk_snapshots_lineage_id FOREIGN KEY(lineage_id) REFERENCES lineages (lineage_id) ON DELETE RESTRICT,
    CONSTRAINT fk_snapshots_parent_id FOREIGN KEY(parent_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT,
    CONSTRAINT fk_snapshots_gate_report_id FOREIGN KEY(gate_report_id)
        REFERENCES gate_reports (gate_report_id) ON DELETE RESTRICT,
    CONSTRAINT fk_snapshots_batch_id FOREIGN KEY(batch_id) REFERENCES edit_batches (batch_id) ON DELETE RESTRICT
);

CREATE TABLE approvals (
    approval_id uuid NOT NULL DEFAULT uuidv7(),
    lineage_id uuid NOT NULL,
    snapshot_id uuid NOT NULL,
    snapshot_digest text NOT NULL,
    champion_seen uuid,
    decision text NOT NULL,
    actor text NOT NULL,
    is_claimed boolean NOT NULL,
    reason text NOT NULL,
    channel text NOT NULL,
    refusal text,
    decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pk_approvals PRIMARY KEY (approval_id),
    CONSTRAINT fk_approvals_lineage_id FOREIGN KEY(lineage_id) REFERENCES lineages (lineage_id) ON DELETE RESTRICT,
    CONSTRAINT fk_approvals_snapshot_id FOREIGN KEY(snapshot_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT,
    CONSTRAINT fk_approvals_champion_seen FOREIGN KEY(champion_seen)
        REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT
);
CREATE INDEX ix_approvals_snapshot_id ON approvals (snapshot_id);

CREATE TABLE edit_rows (
    edit_id uuid NOT NULL,
    snapshot_id uuid NOT NULL,
    rows jsonb NOT NULL,
    CONSTRAINT pk_edit_rows PRIMARY KEY (edit_id, snapshot_id),
    CONSTRAINT fk_edit_rows_edit_id FOREIGN KEY(edit_id) REFERENCES edit_requests (edit_id) ON DELETE RESTRICT,
    CONSTRAINT fk_edit_rows_snapshot_id FOREIGN KEY(snapshot_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT
);

CREATE TABLE removals (
    removal_id uuid NOT NULL DEFAULT uuidv7(),
    lineage_id uuid NOT NULL,
    edit_ids jsonb NOT NULL,
    reinstated_ids jsonb NOT NULL,
    rejected_snapshot_id uuid,
    actor text NOT NULL,
    reason text NOT NULL,
    status text NOT NULL DEFAULT 'requested',
    attempts integer NOT NULL DEFAULT 0,
    outcome text,
    gate_report_id uuid,
    snapshot_id uuid,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    CONSTRAINT pk_removals PRIMARY KEY (removal_id),
    CONSTRAINT ck_removals_status_known CHECK (status IN ('requested', 'done', 'failed')),
    CONSTRAINT fk_removals_lineage_id FOREIGN KEY(lineage_id) REFERENCES lineages (lineage_id) ON DELETE RESTRICT,
    CONSTRAINT fk_removals_rejected_snapshot_id FOREIGN KEY(rejected_snapshot_id)
        REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT,
    CONSTRAINT fk_removals_gate_report_id FOREIGN KEY(gate_report_id)
        REFERENCES gate_reports (gate_report_id) ON DELETE RESTRICT,
    CONSTRAINT fk_removals_snapshot_id FOREIGN KEY(snapshot_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT
);
CREATE INDEX ix_removals_waiting ON removals (lineage_id) WHERE status = 'requested';

CREATE TABLE snapshot_edits (
    snapshot_id uuid NOT NULL,
    edit_id uuid NOT NULL,
    CONSTRAINT pk_snapshot_edits PRIMARY KEY (snapshot_id, edit_id),
    CONSTRAINT fk_snapshot_edits_snapshot_id FOREIGN KEY(snapshot_id)
        REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT,
    CONSTRAINT fk_snapshot_edits_edit_id FOREIGN KEY(edit_id) REFERENCES edit_requests (edit_id) ON DELETE RESTRICT
);
CREATE INDEX ix_snapshot_edits_edit_id ON snapshot_edits (edit_id);

-- Keys that point back, now that every table exists.
ALTER TABLE lineages ADD CONSTRAINT fk_lineages_head_snapshot_id
    FOREIGN KEY (head_snapshot_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT;
ALTER TABLE lineages ADD CONSTRAINT fk_lineages_champion_snapshot_id
    FOREIGN KEY (champion_snapshot_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT;
ALTER TABLE edit_batches ADD CONSTRAINT fk_edit_batches_parent_snapshot_id
    FOREIGN KEY (parent_snapshot_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT;
"""

NAMES = (
    "audit_events",
    "chain_heads",
    "dead_letters",
    "ingest_offsets",
    "lineages",
    "outbox",
    "edit_batches",
    "edit_requests",
    "gate_reports",
    "leases",
    "batch_edits",
    "snapshots",
    "approvals",
    "edit_rows",
    "removals",
    "snapshot_edits",
)


def upgrade() -> None:
    """Make the tables."""
    version = int(op.get_bind().scalar(text("SHOW server_version_num")) or 0)
    if version < NEEDED_VERSION:
        raise Misconfigured(f"expected PostgreSQL 18 or newer, got {version // 10000}")
    run_script(TABLES)


def downgrade() -> None:
    """Drop the tables, if nobody's history is in them."""
    filled = [name for name in NAMES if op.get_bind().scalar(text(f"SELECT EXISTS (SELECT FROM {name})"))]
    if filled:
        raise Misconfigured(f"expected empty tables before dropping them, got rows in {', '.join(filled)}")
    run_script("ALTER TABLE lineages DROP COLUMN head_snapshot_id, DROP COLUMN champion_snapshot_id")
    run_script("ALTER TABLE edit_batches DROP COLUMN parent_snapshot_id")
    run_script(f"DROP TABLE {', '.join(NAMES)}")
