"""The application of the pages: its routes, and its errors as pages. The API's application mounts it."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from pipeline.domain.errors import CorrigendaError
from pipeline.entrypoints.web.pages import edits, login, oidc, operations, snapshots, stream, upkeep
from pipeline.entrypoints.web.pages.rendering import HEADERS, ROOT, page
from pipeline.entrypoints.web.pages.sessions import Denied, LoginNeeded, Sessions
from pipeline.entrypoints.web.parts import WebParts
from pipeline.entrypoints.web.problems import UNSAID, parameters_in, problem_of

STATIC = Path(__file__).parent / "static"


def create_pages(parts: WebParts) -> FastAPI:
    """Return the application of the pages on the parts of the process."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.parts = parts
    settings = parts.settings
    is_secure = settings.web_public_url.startswith("https:")
    app.state.sessions = Sessions(settings.web_session_key.get_secret_value(), ROOT, is_secure=is_secure)
    app.state.oidc = oidc.OidcProvider(parts.settings) if parts.settings.oidc_issuer else None
    for module in (login, oidc, snapshots, edits, operations, upkeep, stream):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC))
    _add_handlers(app)
    return app


def _add_handlers(app: FastAPI) -> None:
    log = structlog.get_logger(__name__)

    def told(request: Request, status: HTTPStatus, detail: str) -> Response:
        return page(request, "error.html", None, status=status, title=status.phrase, detail=detail)

    @app.exception_handler(LoginNeeded)
    def _login(request: Request, error: LoginNeeded) -> Response:
        if "hx-request" in request.headers:  # of a page that stays open: the login's page is no part of it
            return Response(status_code=HTTPStatus.UNAUTHORIZED, headers=HEADERS)
        lost = "&lost=1" if error.has_lost else ""
        target = f"{ROOT}/login?back={quote(error.back, safe='')}{lost}"
        return RedirectResponse(target, HTTPStatus.SEE_OTHER, headers=HEADERS)

    @app.exception_handler(Denied)
    def _denied(request: Request, error: Denied) -> Response:
        return told(request, error.status, error.detail)

    @app.exception_handler(CorrigendaError)
    def _ours(request: Request, error: CorrigendaError) -> Response:
        problem = problem_of(error)
        if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("page_failed", kind=type(error).__name__, error=str(error), ids=error.ids)
        return told(request, problem.status, problem.detail)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        return told(request, HTTPStatus(error.status_code), "There is no such page, or it takes no such request.")

    @app.exception_handler(RequestValidationError)
    def _parameters(request: Request, error: RequestValidationError) -> Response:
        return told(request, HTTPStatus.UNPROCESSABLE_ENTITY, f"Please go back and mend this: {parameters_in(error)}.")

    @app.exception_handler(Exception)
    def _unforeseen(request: Request, error: Exception) -> Response:
        return told(request, HTTPStatus.INTERNAL_SERVER_ERROR, UNSAID)
