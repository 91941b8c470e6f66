"""What Alembic runs around the revisions: one transaction, one migrator at a time, bounded waits.

The connection comes from `pipeline.adapters.schema`, else from CORRIGENDA_DATABASE_URL.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, Engine, text

from pipeline.adapters.sql.database.engine import connect, transaction
from pipeline.adapters.sql.web.tables import metadata
from pipeline.domain.errors import Misconfigured

ADVISORY_LOCK = 0x636F7272  # "corr"
WAIT_FOR_MIGRATOR = "60s"
WAIT_FOR_TABLE = "5s"
"""A migration that waits for a table makes everybody else wait behind it."""
LONGEST_STATEMENT = "10min"


def main() -> None:
    """Run the revisions that Alembic asks for."""
    if context.is_offline_mode():
        raise Misconfigured("expected a database to migrate, got --sql: the revisions look at what is there")
    given = context.config.attributes.get("connection")
    if isinstance(given, Connection):
        _migrate(given)
        return
    engine = given if isinstance(given, Engine) else connect(_url(), "")
    with transaction(engine) as connection:
        _migrate(connection)
    if engine is not given:
        engine.dispose()


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, compare_type=True, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text(f"SET LOCAL statement_timeout = '{LONGEST_STATEMENT}'"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_FOR_MIGRATOR}'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_FOR_TABLE}'"))
        context.run_migrations()


def _url() -> str:
    url = os.environ.get("CORRIGENDA_DATABASE_URL", "")
    if not url:
        raise Misconfigured("expected CORRIGENDA_DATABASE_URL to be set, got nothing")
    return url


main()
