"""The logins that processes have in the database, and how they get their passwords.

Migrations make the roles and say what each may do. Here the owner of the schema lets them in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from psycopg import Connection as PsycopgConnection
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from pipeline.adapters.login_names import Login as Login
from pipeline.adapters.sql.database.engine import connect, parsed_url, transaction
from pipeline.domain.errors import Misconfigured

ADVISORY_LOCK = 0x6C6F6769  # "logi"


def let_in(owner_url: str, login_urls: Iterable[str]) -> None:
    """Let logins in with the users and passwords of their URLs, as the owner of the schema; may be run again.

    Raises:
        Misconfigured: if a URL names another user than one of `Login`, or the owner may not do this.
        Unavailable: if the database does not answer.
    """
    wanted = [_checked(parsed_url(url)) for url in login_urls]
    engine = connect(owner_url, "")
    try:
        with transaction(engine) as connection:
            # Two at once would write the same row of the server's catalogue.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            for user, password in wanted:
                set_password(connection, user, password)
    finally:
        engine.dispose()


def give_database(owner_url: str, url: str) -> None:
    """Give another program, such as MLflow, the database and the login of its URL; may be run again.

    Tables that are there already become that login's, and nobody else is let into the database.

    Raises:
        Misconfigured: if the URL names no user, password and database of its own, or the owner may not do this.
        Unavailable: if the database does not answer.
    """
    other, own = parsed_url(url), parsed_url(owner_url)
    user, password, name = other.username or "", other.password or "", other.database or ""
    if not (user and password and name) or user in (own.username, *Login) or name == own.database:
        raise Misconfigured("expected the URL of another program's own login and database, got another")
    server = connect(owner_url, "")
    try:
        with transaction(server.execution_options(isolation_level="AUTOCOMMIT")) as connection:
            if not connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :user"), {"user": user}):
                run_quoted(connection, "CREATE ROLE {}", user)
            set_password(connection, user, password)
            if not connection.scalar(text("SELECT count(*) FROM pg_database WHERE datname = :name"), {"name": name}):
                run_quoted(connection, "CREATE DATABASE {}", name)
            run_quoted(connection, "ALTER DATABASE {} OWNER TO {}", name, user)
            run_quoted(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
    finally:
        server.dispose()
    _hand_over_tables(own.set(database=name), user)


def set_password(connection: Connection, user: str, password: str) -> None:
    """Let a role log in with a password. The server gets its hash only, so that the password is in none of its logs."""
    raw = _raw(connection)
    hashed = raw.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256").decode()
    change = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(user), hashed)
    connection.exec_driver_sql(change.as_string(raw), execution_options={"no_parameters": True})


def _hand_over_tables(url: URL, user: str) -> None:
    """Make a login the owner of a database's tables, and so of what belongs to them."""
    engine = connect(url.render_as_string(hide_password=False), "")
    others = text(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')"
        " AND pg_get_userbyid(relowner) <> :user"
    )
    try:
        with transaction(engine) as connection:
            for name in connection.execute(others, {"user": user}).scalars().all():
                run_quoted(connection, "ALTER TABLE public.{} OWNER TO {}", name, user)
    finally:
        engine.dispose()


def run_quoted(connection: Connection, statement: LiteralString, *names: str) -> None:
    """Run a statement with names in the place of its braces, quoted as PostgreSQL reads names."""
    quoted = sql.SQL(statement).format(*map(sql.Identifier, names)).as_string(_raw(connection))
    connection.exec_driver_sql(quoted, execution_options={"no_parameters": True})


def _raw(connection: Connection) -> PsycopgConnection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, PsycopgConnection)
    return raw


def _checked(url: URL) -> tuple[str, str]:
    user, password = url.username or "", url.password or ""
    if user not in frozenset(Login):
        raise Misconfigured(f"expected the URL of a login, one of {', '.join(Login)}; got one of {user!r:.80}")
    if not password:
        raise Misconfigured(f"expected a password in the URL of the login {user}, got none")
    return user, password
