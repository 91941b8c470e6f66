"""Reviewers: people with a database login of their own, so that who decides is who logged in.

A reviewer's token is `NAME:PASSWORD` of that login. It lies in a file that its owner alone may read.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from sqlalchemy import Connection, text

from pipeline.adapters.logins import run_quoted, set_password
from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.engine import connect, parsed_url, transaction
from pipeline.domain.audit import SYSTEM_CHAIN, AuditAction
from pipeline.domain.errors import InvalidInput, Misconfigured

NAME = re.compile(r"[a-z][a-z0-9_.-]{0,40}")
RESERVED = ("corrigenda", "pg_", "postgres", "mlflow", "public", "none")
"""How no reviewer's name begins: processes and the server have such roles."""
IS_REVIEWER = text(
    "SELECT count(*) FROM pg_auth_members m WHERE m.roleid = 'corrigenda_reviewer'::regrole AND m.inherit_option"
    " AND m.member = (SELECT oid FROM pg_roles WHERE rolname = :name)"
)


def add_reviewer(owner_url: str, name: str, *, actor: str) -> str:
    """Let a reviewer log in, as the owner of the schema; return the token. One that is there gets a new token.

    Raises:
        InvalidInput: if the name cannot be one, or the role of that name is somebody else's.
        Misconfigured: if the owner may not do this.
        Unavailable: if the database does not answer.
    """
    if not NAME.fullmatch(name) or name.startswith(RESERVED):
        raise InvalidInput(f"expected a reviewer's name: small letters, digits, _ . and -, no role's; got {name!r:.80}")
    password = secrets.token_urlsafe(24)
    engine = connect(owner_url, "")
    try:
        with transaction(engine) as connection:
            if not connection.scalar(IS_REVIEWER, {"name": name}):
                if connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :name"), {"name": name}):
                    raise InvalidInput(f"expected a name that no role of the database has, got {name!r}")
                run_quoted(connection, "CREATE ROLE {} NOLOGIN", name)
                run_quoted(connection, "GRANT corrigenda_reviewer TO {} WITH INHERIT TRUE, SET FALSE", name)
            set_password(connection, name, password)
            _note(connection, AuditAction.reviewer_added, name, actor)
    finally:
        engine.dispose()
    return f"{name}:{password}"


def remove_reviewer(owner_url: str, name: str, *, actor: str) -> None:
    """Shut a reviewer out, as the owner of the schema; what they decided stays theirs.

    Raises:
        InvalidInput: if nobody of that name is a reviewer.
        Misconfigured, Unavailable: as `add_reviewer`.
    """
    engine = connect(owner_url, "")
    try:
        with transaction(engine) as connection:
            if not connection.scalar(IS_REVIEWER, {"name": name}):
                raise InvalidInput(f"expected the name of a reviewer, got {name!r:.80}")
            run_quoted(connection, "ALTER ROLE {} NOLOGIN PASSWORD NULL", name)
            run_quoted(connection, "REVOKE corrigenda_reviewer FROM {}", name)
            _note(connection, AuditAction.reviewer_removed, name, actor)
    finally:
        engine.dispose()


def as_reviewer(database_url: str, token: str) -> str:
    """Return the URL of the same database for the reviewer whose token it is.

    Raises:
        Misconfigured: if it is no token; the message does not repeat it.
    """
    name, _, password = token.strip().partition(":")
    if not NAME.fullmatch(name) or not password:
        raise Misconfigured("expected a reviewer's token, NAME:PASSWORD as `corrigenda reviewer add` wrote it")
    return parsed_url(database_url).set(username=name, password=password).render_as_string(hide_password=False)


def token_from(path: Path) -> str:
    """Read a token from a file that nobody else may read.

    Raises:
        Misconfigured: if it cannot be read, or others may read it too.
    """
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise Misconfigured(f"expected a token that only its owner may read, got {path} with mode {mode & 0o777:o}")
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise Misconfigured(f"expected a file with a reviewer's token, got {path}: {error}") from error


def _note(connection: Connection, action: AuditAction, name: str, actor: str) -> None:
    append(connection, chain=SYSTEM_CHAIN, actor=actor, action=action, subject=f"reviewer:{name}", payload={})
