"""Logging in with a token, logging out, and the start page."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from pipeline.domain.review.people import Role
from pipeline.entrypoints.web.pages.rendering import HEADERS, ROOT, page
from pipeline.entrypoints.web.pages.sessions import Session, check_origin, safe_path
from pipeline.entrypoints.web.pages.signed_in import form_of, sessions_of
from pipeline.entrypoints.web.parts import Parts

router = APIRouter()
log = structlog.get_logger(__name__)


@router.get("/")
def start() -> Response:
    """Lead to what waits."""
    return RedirectResponse(f"{ROOT}/queue", HTTPStatus.SEE_OTHER, headers=HEADERS)


@router.get("/login")
def ask(request: Request, back: str = "", lost: bool = False) -> Response:
    """Show the form that takes a token, and say so if what somebody sent was not carried out."""
    return _form(request, safe_path(back, under=ROOT), lost=lost)


@router.post("/login")
def log_in(
    request: Request, parts: Parts, token: Annotated[str, Form(max_length=500)] = "", back: Annotated[str, Form()] = ""
) -> Response:
    """Begin a session for the person whose token is given."""
    check_origin(request)
    target = safe_path(back, under=ROOT)
    person = parts.stores.people.with_token(token.strip())
    if person is None:
        log.warning("login_refused")
        return _form(request, target, HTTPStatus.UNAUTHORIZED)
    response = RedirectResponse(target, HTTPStatus.SEE_OTHER, headers=HEADERS)
    sessions_of(request).begin(request, response, person)
    log.info("logged_in", person=person.name)
    return response


@router.post("/logout")
def log_out(request: Request, session: Annotated[Session, Depends(form_of(*Role))]) -> Response:
    """End the session of this browser."""
    response = RedirectResponse(f"{ROOT}/login", HTTPStatus.SEE_OTHER, headers=HEADERS)
    sessions_of(request).end(response)
    return response


def _form(request: Request, back: str, status: HTTPStatus = HTTPStatus.OK, *, lost: bool = False) -> Response:
    has_provider, wrong = request.app.state.oidc is not None, status is not HTTPStatus.OK
    return page(
        request, "login.html", None, status=status, back=back, wrong=wrong, lost=lost, has_provider=has_provider
    )
