"""What every page that needs a login gets: the session, the stores, and checked forms."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, cast
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, Form, Request

from pipeline.domain.review.people import SEES_EVERYTHING, Role
from pipeline.entrypoints.web.pages.sessions import Denied, LoginNeeded, Session, Sessions, check_form
from pipeline.entrypoints.web.parts import Parts

REASON_CHARS = 2_000


def sessions_of(request: Request) -> Sessions:
    """Return what makes and reads the sessions of this process."""
    return cast(Sessions, request.app.state.sessions)


def session(request: Request, parts: Parts) -> Session:
    """Return the session of a request.

    Raises:
        LoginNeeded: if nobody is logged in.
    """
    found = sessions_of(request).of(request, parts)
    if found is None:
        query = f"?{request.url.query}" if request.url.query else ""
        if request.method == "GET":
            raise LoginNeeded(request.url.path + query)
        # Where the form is, which its own address need not show.
        raise LoginNeeded(urlsplit(request.headers.get("referer", "")).path, has_lost=True)
    structlog.contextvars.bind_contextvars(person=found.person.name)
    return found


SignedIn = Annotated[Session, Depends(session)]
"""The parameter of a page for everybody who is logged in."""


def reader_with(*roles: Role) -> Callable[..., Session]:
    """Return a dependency for pages that people with one of some roles may read."""

    def checked(found: SignedIn) -> Session:
        return _allowed(found, frozenset(roles))

    return checked


Reader = Annotated[Session, Depends(reader_with(*SEES_EVERYTHING))]
"""The parameter of a page that shows everybody's corrections."""


def form_of(*roles: Role) -> Callable[..., Session]:
    """Return a dependency for forms that people with one of some roles may send."""

    def checked(request: Request, found: SignedIn, csrf: Annotated[str, Form()] = "") -> Session:
        check_form(request, found, csrf)
        return _allowed(found, frozenset(roles))

    return checked


def _allowed(found: Session, roles: frozenset[Role]) -> Session:
    if not found.person.has_any(roles):
        wanted = " or ".join(sorted(roles))
        raise Denied(HTTPStatus.FORBIDDEN, f"This is for people with the role {wanted}; {found.person.name} has none.")
    return found
