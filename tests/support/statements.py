"""Statements that SQLAlchemy has compiled, kept for all engines of a test process.

An engine keeps what it compiled as long as it lives. Each test has a database and so engines of its own, and compiled
the same few hundred statements again: a quarter of what tests of stores took.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.util import LRUCache

MOST_STATEMENTS = 5_000

_compiled: Any = LRUCache(MOST_STATEMENTS)


def keep_compiled_statements() -> None:
    """Have every engine of PostgreSQL that this process makes from now on look there first."""
    # Part of a statement's key is the dialect. Those of our engines differ in nothing: one driver, one server.
    PGDialect_psycopg.__eq__ = lambda one, other: type(one) is type(other)  # type: ignore[method-assign]
    PGDialect_psycopg.__hash__ = lambda one: hash(type(one))  # type: ignore[assignment,method-assign]
    event.listen(Engine, "engine_connect", _share)


def _share(connection: Connection) -> None:
    connection.execution_options(compiled_cache=_compiled)
