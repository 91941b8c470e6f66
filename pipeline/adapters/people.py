"""People: who may use the HTTP API and the pages, and in which roles. Reviewers have a database login too.

A person's token is `NAME:PASSWORD`. The table `people` keeps a digest of the password. For a reviewer it is also the
password of the database login of that name, so that who decides from a command line is who logged in. Tokens lie in
files that their owner alone may read.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from pipeline.adapters.logins import run_quoted, set_password
from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.engine import connect, parsed_url, transaction
from pipeline.adapters.sql.web.tables import people
from pipeline.domain.audit import SYSTEM_CHAIN, AuditAction
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.domain.formats.canonical import sha256_text
from pipeline.domain.review.people import NAME, Role

RESERVED = ("corrigenda", "pg_", "postgres", "mlflow", "public", "none")
"""How no person's name begins: processes and the server have such roles."""
IS_REVIEWER = text(
    "SELECT count(*) FROM pg_auth_members m WHERE m.roleid = 'corrigenda_reviewer'::regrole AND m.inherit_option"
    " AND m.member = (SELECT oid FROM pg_roles WHERE rolname = :name)"
)

WAS_REVIEWER = text(
    "SELECT count(*) FROM audit_events WHERE subject = :subject AND chain = 'system' AND action = 'reviewer:removed'"
)
"""Whether a role was a reviewer's; roles outlive removal, since lines of history and open sessions name them."""


def add_person(owner_url: str, name: str, roles: Iterable[Role], *, actor: str) -> str:
    """Give somebody roles, as the owner of the schema; return a token, in place of the one they had before.

    Roles that they have already stay theirs.

    Raises:
        InvalidInput: if there is no role, the name cannot be one, or a database role of that name is somebody else's.
        Misconfigured: if the owner may not do this.
        Unavailable: if the database does not answer.
    """
    if not NAME.fullmatch(name) or name.startswith(RESERVED):
        raise InvalidInput(f"expected a person's name: small letters, digits, _ . and -, no role's; got {name!r:.80}")
    password, wanted = secrets.token_urlsafe(24), frozenset(roles)
    if not wanted:
        raise InvalidInput(f"expected at least one role for {name}, one of {', '.join(Role)}; got none")
    engine = connect(owner_url, "")
    try:
        with transaction(engine) as connection:
            held = sorted(wanted | _roles(connection, name))
            values = {"roles": held, "token_digest": sha256_text(password), "removed_at": None}
            added = upsert(people).values(name=name, **values)
            connection.execute(added.on_conflict_do_update(constraint=people.primary_key, set_=values))
            if Role.reviewer in held:
                _let_reviewer_in(connection, name, password, actor)
            _note(connection, AuditAction.person_added, f"person:{name}", actor, roles=held)
    finally:
        engine.dispose()
    return f"{name}:{password}"


def remove_person(owner_url: str, name: str, roles: Iterable[Role] = tuple(Role), *, actor: str) -> None:
    """Take roles away, as the owner of the schema; who has none left is shut out. What they decided stays theirs.

    Raises:
        InvalidInput: if nobody of that name has one of the roles.
        Misconfigured, Unavailable: as `add_person`.
    """
    engine = connect(owner_url, "")
    try:
        with transaction(engine) as connection:
            gone = frozenset(roles)
            held = _roles(connection, name)
            # A database login may be older than the table of people.
            is_reviewer = Role.reviewer in gone and bool(connection.scalar(IS_REVIEWER, {"name": name}))
            if held.isdisjoint(gone) and not is_reviewer:
                raise InvalidInput(f"expected the name of a {' or '.join(sorted(gone))}, got {name!r:.80}")
            left = sorted(held - gone)
            change: dict[str, object] = {"roles": left}
            if not left:
                change |= {"token_digest": None, "removed_at": func.clock_timestamp()}
            connection.execute(update(people).where(people.c.name == name).values(change))
            if is_reviewer:
                run_quoted(connection, "ALTER ROLE {} NOLOGIN PASSWORD NULL", name)
                run_quoted(connection, "REVOKE corrigenda_reviewer FROM {}", name)
                _note(connection, AuditAction.reviewer_removed, f"reviewer:{name}", actor)
            _note(connection, AuditAction.person_removed, f"person:{name}", actor, roles=sorted(gone), left=left)
    finally:
        engine.dispose()


def listed_people(owner_url: str) -> Sequence[Mapping[str, Any]]:
    """Return name, roles and day of everybody who has a role, as the owner of the schema, by name.

    Raises:
        Misconfigured, Unavailable: as `add_person`.
    """
    engine = connect(owner_url, "")
    try:
        with transaction(engine) as connection:
            query = select(people.c.name, people.c.roles, people.c.added_at).where(people.c.removed_at.is_(None))
            return [dict(row) for row in connection.execute(query.order_by(people.c.name)).mappings()]
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
        raise Misconfigured(f"expected a file with a person's token, got {path}: {error}") from error


def _roles(connection: Connection, name: str) -> frozenset[Role]:
    """Return the roles that somebody has, with their row locked."""
    held = connection.scalar(select(people.c.roles).where(people.c.name == name).with_for_update())
    return frozenset(map(Role, held or ()))


def _let_reviewer_in(connection: Connection, name: str, password: str, actor: str) -> None:
    if not connection.scalar(IS_REVIEWER, {"name": name}):
        _ensure_role(connection, name)
        run_quoted(connection, "GRANT corrigenda_reviewer TO {} WITH INHERIT TRUE, SET FALSE", name)
    set_password(connection, name, password)
    _note(connection, AuditAction.reviewer_added, f"reviewer:{name}", actor)


def _ensure_role(connection: Connection, name: str) -> None:
    """Make a database role of a name, or take the one that a removed reviewer left behind.

    Raises:
        InvalidInput: if a role of that name is somebody else's.
    """
    may_log_in = connection.scalar(text("SELECT rolcanlogin FROM pg_roles WHERE rolname = :name"), {"name": name})
    if may_log_in is None:
        run_quoted(connection, "CREATE ROLE {} NOLOGIN", name)
    elif may_log_in or not connection.scalar(WAS_REVIEWER, {"subject": f"reviewer:{name}"}):
        raise InvalidInput(
            f"expected a name that no role of the database has, got {name!r}, which is none of our reviewers; choose "
            "another name, or drop that role if nobody needs it"
        )


def _note(connection: Connection, action: AuditAction, subject: str, actor: str, **payload: object) -> None:
    append(connection, chain=SYSTEM_CHAIN, actor=actor, action=action, subject=subject, payload=payload)
