"""The tables of the HTTP API, in the same metadata as all others: whoever imports it from here sees every table."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY

from pipeline.adapters.sql.database.columns import at_column
from pipeline.adapters.sql.database.tables import metadata as metadata
from pipeline.domain.people import Role

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
