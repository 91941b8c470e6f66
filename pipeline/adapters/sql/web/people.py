"""Who is behind a token, in PostgreSQL."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from sqlalchemy import Engine, select

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.web.tables import people
from pipeline.domain.formats.canonical import sha256_text
from pipeline.domain.review.people import NAME, Person, Role

MARK_CHARS = 16
_NOBODY = sha256_text("")
"""Compared with when there is no such person, so that the time to answer does not tell names."""


class SqlPeopleStore:
    """Reads people; `pipeline.adapters.people` writes them, as the owner of the schema."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def with_token(self, token: str) -> Person | None:
        """Return the person whose token, `NAME:PASSWORD`, this is; None if it is nobody's, or was taken back."""
        name, _, password = token.partition(":")
        if not NAME.fullmatch(name):
            return None
        query = select(people.c.roles, people.c.token_digest).where(people.c.name == name)
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        known = row.token_digest if row and row.token_digest else _NOBODY
        # `_NOBODY` is the digest of no password at all.
        is_theirs = hmac.compare_digest(sha256_text(password), known) and bool(password)
        return _person(name, row.roles, row.token_digest) if row and is_theirs else None

    def named(self, name: str) -> Person | None:
        """Return a person who has a role; None if nobody of that name has one. Sessions are checked with this."""
        if not NAME.fullmatch(name):
            return None
        query = select(people.c.roles, people.c.token_digest)
        with transaction(self._engine) as connection:
            found = query.where(people.c.name == name, people.c.removed_at.is_(None))
            row = connection.execute(found).one_or_none()
        return _person(name, row.roles, row.token_digest) if row and row.roles else None


def _person(name: str, roles: Sequence[str], token_digest: str | None) -> Person:
    mark = sha256_text(token_digest or "")[:MARK_CHARS]
    return Person(name=name, roles=frozenset(map(Role, roles)), token_mark=mark)
