"""Who sends a request, and whether they may.

A program shows a token: `Authorization: Bearer NAME:PASSWORD`, or the same as user and password of HTTP's basic
authentication (`curl --user`). A browser has a session, which only the pages take (`pages/sessions.py`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, NoReturn

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPBasic, HTTPBearer
from starlette.requests import HTTPConnection

from pipeline.domain.review.people import Person, Role
from pipeline.entrypoints.web.parts import Parts
from pipeline.entrypoints.web.problems import Problem

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="corrigenda", Basic realm="corrigenda"'}
MAX_HEADER_CHARS = 1_000


class _ShownBearer(HTTPBearer):
    async def __call__(self, request: HTTPConnection) -> None:
        return None


class _ShownBasic(HTTPBasic):
    async def __call__(self, request: HTTPConnection) -> None:
        return None


SIGNED_IN = [
    Depends(_ShownBearer(scheme_name="bearer", description="NAME:PASSWORD, as `corrigenda person add` wrote it.")),
    Depends(_ShownBasic(scheme_name="basic", description="The same token as user name and password.")),
]
"""Dependencies of a router whose routes ask for a token.

They only show in OpenAPI; FastAPI's own refusals are no problems."""


def caller(request: Request, parts: Parts) -> Person:
    """Return who sends the request.

    Raises:
        Problem: 401 if nobody is shown, or the token is nobody's.
    """
    header = request.headers.get("authorization")
    if header is None:
        _refuse("expected a token (Authorization: Bearer NAME:PASSWORD), got none; see `corrigenda person add`")
    return parts.stores.people.with_token(_token(header)) or _refuse(
        "expected a token that is still valid, got another"
    )


Caller = Annotated[Person, Depends(caller)]
"""The parameter of a route for everybody who shows who they are."""


def require(*roles: Role) -> Callable[[Person], Person]:
    """Return a dependency that gives the caller, who has one of some roles; others get 403."""

    def allowed(person: Caller) -> Person:
        if not person.has_any(roles):
            wanted = " or ".join(roles)
            raise Problem(HTTPStatus.FORBIDDEN, f"expected a {wanted}, and {person.name} is none")
        structlog.contextvars.bind_contextvars(person=person.name)
        return person

    return allowed


def _token(header: str) -> str:
    """Return the token of a header Authorization; it is compared later, and refused there if it is none."""
    scheme, _, given = header[:MAX_HEADER_CHARS].partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given.strip(), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            _refuse("expected user and password in base64 after Basic, got something else")
    _refuse(f"expected the scheme Bearer or Basic in the header Authorization, got {scheme!r:.40}")


def _refuse(detail: str) -> NoReturn:
    raise Problem(HTTPStatus.UNAUTHORIZED, detail, headers=CHALLENGE)
