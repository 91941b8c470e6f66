"""The tables, as SQLAlchemy Core. Alembic owns the schema: triggers, views and grants are in `migrations/`."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ColumnElement, Index, MetaData, Table, UniqueConstraint, literal, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.types import BigInteger, Boolean, Double, Integer, LargeBinary, Text

from pipeline.adapters.sql.database.columns import ENDED, HELD, at_column, id_column, one_of, partial, ref_column
from pipeline.domain.lifecycle import EditStatus, RemovalStatus, SnapshotStatus
from pipeline.domain.snapshots import DigestForm

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ORDER_OF_CLAIMS = ("occurred_at", "topic", "partition", "offset", "edit_id")
"""Columns of `edit_requests`: the oldest waiting edit is claimed first."""


def status_is(status: EditStatus) -> ColumnElement[bool]:
    """Return the condition on a status, written into the statement: partial indexes do not see a parameter."""
    return edit_requests.c.status == literal(status.value, literal_execute=True)


def is_owed() -> ColumnElement[bool]:
    """Return the condition that a removal is still to be made, written into the statement as in `status_is`."""
    return removals.c.status == literal(RemovalStatus.requested.value, literal_execute=True)


lineages = Table(
    "lineages",
    metadata,
    id_column("lineage_id"),
    Column("name", Text, nullable=False, unique=True),
    Column("task", Text, nullable=False),
    Column("base_ref", Text, nullable=False),
    Column("base_digest", Text, nullable=False),
    Column("base_config_digest", Text),
    Column("editor", JSONB, nullable=False),
    Column("editor_digest", Text, nullable=False),
    Column("policy", JSONB, nullable=False),
    Column("prior", JSONB, nullable=False),
    Column("baseline", JSONB, nullable=False),
    ref_column("head_snapshot_id", "snapshots.snapshot_id", nullable=True, is_back=True),
    ref_column("champion_snapshot_id", "snapshots.snapshot_id", nullable=True, is_back=True),
    Column("seq", Integer, nullable=False, server_default="0"),
    Column("num_batches", Integer, nullable=False, server_default="0"),
    Column("num_activations", Integer, nullable=False, server_default="0"),
    Column("hold", Text),
    Column("approval_rule", Text, nullable=False, server_default="anyone"),
    Column("approval_policy", JSONB),
    Column("upkeep", JSONB(none_as_null=True)),
    at_column("created_at"),
    CheckConstraint("name !~ '[/:[:space:]]' AND name <> 'system'", name="name_usable"),
    CheckConstraint("task IN ('causal', 'seq2seq', 'classifier')", name="task_known"),
)

leases = Table(
    "leases",
    metadata,
    ref_column("lineage_id", "lineages.lineage_id", primary_key=True),
    Column("owner", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    at_column("expires_at", default=False),
    Column("doing", JSONB(none_as_null=True)),
    at_column("doing_since", nullable=True, default=False),
)

edit_requests = Table(
    "edit_requests",
    metadata,
    id_column("edit_id"),
    ref_column("lineage_id", "lineages.lineage_id"),
    Column("request_id", Text, nullable=False),
    Column("payload_digest", Text, nullable=False),
    Column("conflict_key", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("subject", Text),
    Column("relation", Text),
    Column("target_new", Text, nullable=False),
    Column("target_true", Text),
    Column("rephrases", JSONB, nullable=False),
    Column("locality", JSONB, nullable=False),
    Column("portability", JSONB, nullable=False),
    Column("question", Text),
    Column("messages", JSONB, nullable=False, server_default="[]"),
    Column("answer", Text),
    Column("aliases", JSONB, nullable=False, server_default="[]"),
    Column("source", Text),
    Column("submitted_by", Text),
    at_column("occurred_at", default=False),
    Column("cluster_id", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    at_column("received_at"),
    Column("status", Text, nullable=False, server_default=EditStatus.received.value),
    Column("attempts", Integer, nullable=False, server_default="0"),
    at_column("next_attempt_at"),
    Column("reason", Text),
    ref_column("superseded_by", "edit_requests.edit_id", nullable=True),
    Column("traceparent", Text),
    UniqueConstraint("lineage_id", "request_id"),
    UniqueConstraint("cluster_id", "topic_id", "partition", "offset"),
    one_of("status", EditStatus),
    partial("ix_edit_requests_waiting", "lineage_id", "next_attempt_at", where="status = 'received'"),
    partial("ix_edit_requests_claimed", "lineage_id", where="status = 'claimed'"),
    partial("ix_edit_requests_front", "lineage_id", *ORDER_OF_CLAIMS, where="status = 'received'"),
    # Hashed: a key may be longer than a B-tree takes. It holds the lineage's name.
    partial("ix_edit_requests_waiting_key", "conflict_key", postgresql_using="hash", where="status = 'received'"),
    partial("ix_edit_requests_held_key", "conflict_key", postgresql_using="hash", where=HELD),
    partial("ix_edit_requests_held_subject", "lineage_id", text("lower(subject)"), "received_at", where=HELD),
    partial("ix_edit_requests_ended_relation", "lineage_id", text("lower(relation)"), "received_at", where=ENDED),
    partial("ix_edit_requests_superseded_by", "superseded_by", where="superseded_by IS NOT NULL"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    id_column("dead_letter_id"),
    Column("cluster_id", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("key", LargeBinary),
    Column("value", LargeBinary),
    Column("headers", JSONB, nullable=False),
    Column("error", Text, nullable=False),
    at_column("created_at"),
    at_column("replayed_at", nullable=True, default=False),
    at_column("pruned_at", nullable=True, default=False),
    UniqueConstraint("cluster_id", "topic_id", "partition", "offset"),
)

ingest_offsets = Table(
    "ingest_offsets",
    metadata,
    Column("cluster_id", Text, primary_key=True),
    Column("topic_id", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("num_received", BigInteger, nullable=False, server_default="0"),
    Column("num_duplicates", BigInteger, nullable=False, server_default="0"),
    Column("num_refused", BigInteger, nullable=False, server_default="0"),
    at_column("updated_at"),
)

edit_batches = Table(
    "edit_batches",
    metadata,
    id_column("batch_id"),
    ref_column("lineage_id", "lineages.lineage_id"),
    Column("ordinal", Integer, nullable=False),
    ref_column("parent_snapshot_id", "snapshots.snapshot_id", nullable=True, is_back=True),
    Column("lease_epoch", BigInteger, nullable=False),
    at_column("claimed_at"),
    at_column("finished_at", nullable=True, default=False),
    Column("seconds", JSONB),
    UniqueConstraint("lineage_id", "ordinal"),
    partial("ix_edit_batches_open", "lineage_id", where="finished_at IS NULL"),
)

batch_edits = Table(
    "batch_edits",
    metadata,
    ref_column("batch_id", "edit_batches.batch_id", primary_key=True),
    ref_column("edit_id", "edit_requests.edit_id", primary_key=True),
    Column("outcome", Text),
    ref_column("gate_report_id", "gate_reports.gate_report_id", nullable=True),
    Index("ix_batch_edits_edit_id", "edit_id"),
)

gate_reports = Table(
    "gate_reports",
    metadata,
    id_column("gate_report_id"),
    ref_column("lineage_id", "lineages.lineage_id"),
    Column("snapshot_digest", Text),
    Column("verdict", Text, nullable=False),
    Column("policy_digest", Text, nullable=False),
    Column("probe_set_digest", Text, nullable=False),
    Column("report", JSONB, nullable=False),
    at_column("created_at"),
)

snapshots = Table(
    "snapshots",
    metadata,
    id_column("snapshot_id"),
    ref_column("lineage_id", "lineages.lineage_id"),
    Column("seq", Integer, nullable=False),
    ref_column("parent_id", "snapshots.snapshot_id", nullable=True),
    Column("basis", Text, nullable=False),
    Column("delta", JSONB, nullable=False),
    Column("delta_digest", Text, nullable=False),
    Column("accumulator", JSONB),
    Column("digest", Text, nullable=False),
    Column("digest_form", Text, nullable=False, server_default=DigestForm.chain.value),
    Column("num_active", Integer, nullable=False),
    Column("status", Text, nullable=False, server_default=SnapshotStatus.candidate.value),
    ref_column("gate_report_id", "gate_reports.gate_report_id"),
    ref_column("batch_id", "edit_batches.batch_id", nullable=True),
    Column("registry_version", Text),
    Column("package_digest", Text),
    Column("lease_epoch", BigInteger, nullable=False),
    at_column("created_at"),
    Column("traceparent", Text),
    Column("prior_strength", Double),
    UniqueConstraint("lineage_id", "seq"),
    UniqueConstraint("lineage_id", "parent_id", postgresql_nulls_not_distinct=True),
    one_of("status", SnapshotStatus),
    CheckConstraint("basis IN ('parent', 'base')", name="basis_known"),
    one_of("digest_form", DigestForm),
)

# What the alias `champion` of a lineage may be without anybody's hand in it: what was written last, or is about to be.
# '' stands for no alias. `putting_back` is a move by hand that is being put right.
champion_aliases = Table(
    "champion_aliases",
    metadata,
    ref_column("lineage_id", "lineages.lineage_id", primary_key=True),
    Column("written", ARRAY(Text), nullable=False, server_default="{}"),
    Column("putting_back", JSONB(none_as_null=True)),
)

# One row an activation of an edit: from the snapshot at `since_seq` to the one before `until_seq`, null while the head
# holds it. `place` says in which order rows were made: an edit that is made again in a later snapshot, at `remade_seq`,
# gets another one.
edit_rows = Table(
    "edit_rows",
    metadata,
    ref_column("lineage_id", "lineages.lineage_id", primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    ref_column("edit_id", "edit_requests.edit_id"),
    ref_column("snapshot_id", "snapshots.snapshot_id"),
    Column("since_seq", Integer, nullable=False),
    Column("until_seq", Integer),
    Column("rows", JSONB, nullable=False),
    Column("remade_seq", Integer),
    UniqueConstraint("edit_id", "since_seq"),
    CheckConstraint("until_seq > since_seq", name="some_time"),
    partial("uq_edit_rows_active", "edit_id", unique=True, where="until_seq IS NULL"),
    partial("ix_edit_rows_active_places", "lineage_id", "place", where="until_seq IS NULL"),
    partial("ix_edit_rows_left", "lineage_id", "until_seq", where="until_seq IS NOT NULL"),
    Index("ix_edit_rows_snapshot_id", "snapshot_id"),
)

removals = Table(
    "removals",
    metadata,
    id_column("removal_id"),
    ref_column("lineage_id", "lineages.lineage_id"),
    Column("edit_ids", JSONB, nullable=False, server_default="[]"),
    Column("reinstated_ids", JSONB, nullable=False, server_default="[]"),
    ref_column("rejected_snapshot_id", "snapshots.snapshot_id", nullable=True),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=RemovalStatus.requested.value),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("outcome", Text),
    ref_column("gate_report_id", "gate_reports.gate_report_id", nullable=True),
    ref_column("snapshot_id", "snapshots.snapshot_id", nullable=True),
    at_column("requested_at"),
    at_column("finished_at", nullable=True, default=False),
    Column("resolving", JSONB(none_as_null=True)),
    # Megabytes for a large ledger: here, so that whoever selects a snapshot does not fetch them.
    Column("replaced_rows", JSONB(none_as_null=True)),
    one_of("status", RemovalStatus),
    CheckConstraint("resolving IS NULL OR status <> 'done' OR snapshot_id IS NOT NULL", name="solved_anew_is_made"),
    partial("ix_removals_waiting", "lineage_id", where="status = 'requested'"),
    partial("ix_removals_resolving", "lineage_id", "requested_at", where="resolving IS NOT NULL"),
)

approvals = Table(
    "approvals",
    metadata,
    id_column("approval_id"),
    ref_column("lineage_id", "lineages.lineage_id"),
    ref_column("snapshot_id", "snapshots.snapshot_id"),
    Column("snapshot_digest", Text, nullable=False),
    ref_column("champion_seen", "snapshots.snapshot_id", nullable=True),
    Column("decision", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("is_claimed", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("refusal", Text),
    at_column("decided_at"),
    Index("ix_approvals_snapshot_id", "snapshot_id"),
)

outbox = Table(
    "outbox",
    metadata,
    id_column("outbox_id"),
    Column("dedup_key", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    at_column("next_attempt_at"),
    at_column("created_at"),
    at_column("done_at", nullable=True, default=False),
    Column("error", Text),
    Column("stream", Text),
    Column("claim", UUID(as_uuid=False)),
    at_column("given_up_at", nullable=True, default=False),
    partial("ix_outbox_due", "kind", "outbox_id", where="done_at IS NULL AND given_up_at IS NULL"),
    partial("ix_outbox_stream", "stream", "outbox_id", where="stream IS NOT NULL"),
    partial("ix_outbox_given_up", "given_up_at", where="given_up_at IS NOT NULL AND done_at IS NULL"),
)

chain_heads = Table(
    "chain_heads",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
)

audit_events = Table(
    "audit_events",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    at_column("at", default=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    UniqueConstraint("chain", "prev_hash"),
    Index("ix_audit_events_subject", "subject"),
)
