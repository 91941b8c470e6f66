"""Connections to PostgreSQL, and what its errors mean to us."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from pipeline.adapters.login_names import Login
from pipeline.domain.errors import CorrigendaError, InvalidInput, LoginRefused, Misconfigured, Unavailable

APPLICATION_NAME = "corrigenda"
CONNECT_TIMEOUT = timedelta(seconds=10)
STATEMENT_TIMEOUT = timedelta(seconds=60)
LOCK_TIMEOUT = timedelta(seconds=20)
IDLE_TIMEOUT = timedelta(minutes=5)
"""An open transaction that does nothing for so long holds locks for nobody."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_TOO_MANY_PARAMETERS = "number of parameters must be between 0 and"
_WRONG_LOGIN = re.compile(r"authentication failed|no password supplied|no pg_hba\.conf entry", re.IGNORECASE)
_MISSING_OBJECT = re.compile(r'FATAL: +((?:role|database) "[^"]+" does not exist|invalid value for parameter "role".*)')


def connect(url: str, role: str) -> Engine:
    """Return an engine whose connections act as `role`. Opens none yet.

    Args:
        url: `postgresql://…` or `postgresql+psycopg://…`.
        role: role to take on after connecting; empty keeps the one that logs in.

    Raises:
        Misconfigured: if the URL or the role's name cannot be right.
    """
    if role and not _IDENTIFIER.fullmatch(role):
        raise Misconfigured(f"expected the name of a database role, got {role!r:.80}")
    return create_engine(
        parsed_url(url),
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "application_name": APPLICATION_NAME,
            "connect_timeout": int(CONNECT_TIMEOUT.total_seconds()),
            "options": _options(role),
            # A host that vanished is noticed in half a minute instead of two hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
    )


def for_a_process(engine: Engine) -> Engine:
    """Make an engine refuse to act as a superuser, whom no guard of the schema holds back; migrations alone may.

    Raises:
        Misconfigured: when it connects, if that is who it is.
    """
    event.listen(engine, "connect", _refuse_superuser)
    return engine


def _refuse_superuser(raw: psycopg.Connection[Any], _: object) -> None:
    if raw.info.parameter_status("is_superuser") == "on":
        raise Misconfigured(
            f"expected a database login of this process's own, such as corrigenda_intake, got the superuser "
            f"{raw.info.user!r}; that one is for migrations"
        )


def parsed_url(url: str) -> URL:
    """Return the URL with its driver, psycopg 3.

    Raises:
        Misconfigured: if it is none of PostgreSQL. The message does not repeat it: it may hold a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise Misconfigured("expected a database URL such as postgresql://user@host:5432/name, got another") from None
    if parsed.get_backend_name() != "postgresql":
        raise Misconfigured(f"expected a postgresql:// URL, got one of {parsed.drivername!r}")
    return parsed.set(drivername="postgresql+psycopg")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Run one transaction: committed at the end, rolled back by any exception.

    Raises:
        Unavailable: if the database does not answer, has no room, or lost a race; the same again may succeed.
            When the connection breaks at the commit nobody knows whether it happened: callers must be repeatable.
        LoginRefused: if it does not take our user or password.
        Misconfigured: if the database, the role or the schema is not what we expect.
        InvalidInput: if a value cannot be stored.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except (SQLAlchemyError, psycopg.Error) as error:
        raise translated(error, engine.url) from error


def translated(error: Exception, url: URL) -> CorrigendaError:
    """Return what a foreign exception means to us, in one sentence."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    where = f"the database {url.database!r} at {url.host}:{url.port or 5432}"
    state = getattr(origin, "sqlstate", None)
    said = _first_line(origin if origin is not None else error)
    if isinstance(state, str):
        return _by_state(state, said, where)
    if isinstance(origin, psycopg.OperationalError):
        return _without_state(str(origin), said, where, url)
    if isinstance(origin, psycopg.InterfaceError) or not isinstance(origin, psycopg.Error | DBAPIError):
        return _by_kind(error, said, where)
    if isinstance(origin, psycopg.DataError):
        return InvalidInput(f"expected a value that PostgreSQL can hold, got one it cannot: {said}")
    return CorrigendaError(f"{where} refused a statement: {said}")


def _by_state(state: str, said: str, where: str) -> CorrigendaError:
    if state in ("53100", "58030"):
        return Unavailable(f"{where} cannot write: disk full ({said})")
    if state in ("40001", "40P01"):
        return Unavailable(f"{where} asks to try again: {said}")
    if state[:2] in ("08", "53", "57", "58") or state in ("55P03", "25P03", "25P04"):
        return Unavailable(f"{where} cannot do it now: {said}")
    if state[:2] == "28":
        return LoginRefused(f"{where} does not let us in: {said}")
    if state == "3D000":
        return Misconfigured(f"{where} does not let us in: {said}")
    if state in ("42P01", "42703", "42883", "3F000"):
        return Misconfigured(f"expected the current schema in {where}, got another ({said}); run `corrigenda up`")
    if state == "42501":
        return Misconfigured(f"the role in use may not do this in {where}: {said}")
    if state[:2] == "22":
        return InvalidInput(f"expected a value that PostgreSQL can hold, got one it cannot: {said}")
    return CorrigendaError(f"{where} refused a statement: {said} (SQLSTATE {state})")


def _without_state(text: str, said: str, where: str, url: URL) -> CorrigendaError:
    """Errors of connecting have no SQLSTATE, only text; nor has what libpq itself does not send."""
    if _TOO_MANY_PARAMETERS in text:
        return CorrigendaError(f"{where} was asked wrongly: {said}")
    if _WRONG_LOGIN.search(text):
        return _refused(where, url)
    missing = _MISSING_OBJECT.search(text)
    if missing:
        return Misconfigured(f"{where} cannot be used: {missing[1]}; run `corrigenda up`")
    return Unavailable(f"{where} does not answer: {said}")


def _refused(where: str, url: URL) -> LoginRefused:
    """The URL's password is not repeated. That of a process comes from the job that lets logins in; others' do not."""
    mend = "the migration job (`corrigenda up` on one machine) gives logins their passwords"
    how = f"; {mend}, CORRIGENDA_DATABASE_URL has to have the same" if url.username in frozenset(Login) else ""
    return LoginRefused(f"{where} does not accept the user {url.username!r} or its password{how}")


def _by_kind(error: Exception, said: str, where: str) -> CorrigendaError:
    """Errors of SQLAlchemy itself: a pool without a free connection, a statement built wrongly."""
    if isinstance(error, NoFreeConnection | InterfaceError | psycopg.InterfaceError):
        return Unavailable(f"{where} has no usable connection: {said}")
    return CorrigendaError(f"{where} was asked wrongly: {said}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _options(role: str) -> str:
    settings = {
        "timezone": "UTC",
        "statement_timeout": _milliseconds(STATEMENT_TIMEOUT),
        "lock_timeout": _milliseconds(LOCK_TIMEOUT),
        "idle_in_transaction_session_timeout": _milliseconds(IDLE_TIMEOUT),
    }
    # Given at the start, so that RESET ROLE does not leave it either.
    if role:
        settings["role"] = role
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _milliseconds(span: timedelta) -> str:
    return str(int(span.total_seconds() * 1000))
