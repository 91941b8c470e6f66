"""The tables of the HTTP API, in the same metadata as all others: whoever imports it from here sees every table."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, Table, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY

from pipeline.adapters.sql.database.columns import at_column, id_column, partial, ref_column
from pipeline.adapters.sql.database.tables import approvals, dead_letters, edit_requests, snapshots
from pipeline.adapters.sql.database.tables import metadata as metadata
from pipeline.domain.review.people import Role

_ROLES = ", ".join(f"'{role}'" for role in Role)

people = Table(
    "people",
    metadata,
    Column("name", Text, primary_key=True),
    Column("roles", ARRAY(Text), nullable=False),
    # SHA-256 of the token's password, which is random: there is nothing to guess. None shuts the person out.
    Column("token_digest", Text),
    at_column("added_at"),
    at_column("removed_at", nullable=True, default=False),
    CheckConstraint(text(f"roles <@ ARRAY[{_ROLES}]"), name="roles_known"),
)

# A correction that came through the API, noted before it is sent. `body_digest` is of what its sender sent,
# `call_digest` of all that came with it in one call.
submissions = Table(
    "submissions",
    metadata,
    id_column("submission_id"),
    ref_column("lineage_id", "lineages.lineage_id"),
    Column("request_id", Text, nullable=False),
    Column("submitted_by", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("call_digest", Text, nullable=False),
    Column("body_digest", Text, nullable=False),
    at_column("occurred_at", default=False),
    at_column("accepted_at"),
    at_column("produced_at", nullable=True, default=False),
    Column("topic", Text),
    Column("partition", Integer),
    Column("offset", BigInteger),
    UniqueConstraint("lineage_id", "request_id"),
    partial("ix_submissions_key", "submitted_by", "idempotency_key", where="idempotency_key IS NOT NULL"),
    Index("ix_submissions_accepted", "accepted_at"),
)

webhooks = Table(
    "webhooks",
    metadata,
    id_column("webhook_id"),
    Column("owner", Text, nullable=False),
    ref_column("lineage_id", "lineages.lineage_id", nullable=True),
    Column("url", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False),
    # Messages are signed with it, so it is kept as it is; the HTTP API's login may write it and not read it.
    Column("secret", Text, nullable=False),
    at_column("created_at"),
    at_column("removed_at", nullable=True, default=False),
    partial("ix_webhooks_owner", "owner", where="removed_at IS NULL"),
    partial("ix_webhooks_lineage", "lineage_id", where="removed_at IS NULL"),
)

# How long the oldest waits; a page of a lineage's edits of one status, and of one person's; what became of a message.
Index(
    "ix_edit_requests_oldest",
    edit_requests.c.lineage_id,
    edit_requests.c.received_at,
    postgresql_where=text("status = 'received'"),
)
Index("ix_edit_requests_listed", edit_requests.c.lineage_id, edit_requests.c.status, edit_requests.c.edit_id)
Index(
    "ix_edit_requests_submitted",
    edit_requests.c.submitted_by,
    edit_requests.c.edit_id,
    postgresql_where=text("submitted_by IS NOT NULL"),
)
Index("ix_dead_letters_place", dead_letters.c.topic, dead_letters.c.partition, dead_letters.c.offset)

# What waits for a decision, of all snapshots.
Index(
    "ix_snapshots_undecided",
    snapshots.c.lineage_id,
    snapshots.c.seq,
    postgresql_where=text("status IN ('candidate', 'rolled_back')"),
)

# What auditors ask of one subject, one prompt, and of decisions in their order.
Index(
    "ix_edit_requests_subject",
    edit_requests.c.lineage_id,
    func.lower(edit_requests.c.subject),
    postgresql_where=text("subject IS NOT NULL"),
)
Index("ix_edit_requests_prompt", edit_requests.c.prompt, postgresql_using="hash")
Index("ix_approvals_decided", approvals.c.lineage_id, approvals.c.decided_at)
