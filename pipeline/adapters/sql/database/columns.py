"""Columns, checks and indexes that many tables have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import CheckConstraint, Column, DateTime, ForeignKey, Index, TextClause, text
from sqlalchemy.dialects.postgresql import UUID

NOW = text("clock_timestamp()")
"""The database's time when a statement reads it, not when its transaction began."""

ENDED = "subject IS NOT NULL AND status IN ('rejected', 'superseded', 'reverted', 'dead')"
"""Condition of requests about a subject that ended without an active edit."""

HELD = "status = 'snapshotted'"
"""Condition of requests whose edit the head holds."""


def partial(name: str, *columns: str | TextClause, where: str, **options: Any) -> Index:
    """Return an index of the rows for which a condition holds."""
    return Index(name, *columns, postgresql_where=text(where), **options)


def id_column(name: str) -> Column[str]:
    """Return a primary key that the database makes: a UUID in the order of time."""
    return Column(name, UUID(as_uuid=False), primary_key=True, server_default=text("uuidv7()"))


def ref_column(
    name: str, target: str, *, nullable: bool = False, primary_key: bool = False, is_back: bool = False
) -> Column[str]:
    """Return a reference to another table's row, which may not be deleted while it is referred to.

    Args:
        name: of the column.
        target: `table.column`.
        nullable: whether it may be empty.
        primary_key: whether it is a part of the primary key.
        is_back: whether the key is added once all tables exist, as that of `lineages` to their head.
    """
    key = ForeignKey(target, ondelete="RESTRICT", use_alter=is_back)
    return Column(name, UUID(as_uuid=False), key, nullable=nullable, primary_key=primary_key)


def at_column(name: str, *, nullable: bool = False, default: bool = True) -> Column[object]:
    """Return a time with a zone, by default that of the insert."""
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=NOW if default else None)


def one_of(column: str, values: Iterable[object]) -> CheckConstraint:
    """Return the check that a column has one of some values."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")
