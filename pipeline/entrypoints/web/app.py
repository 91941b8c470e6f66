"""The application: routers, errors and bounds put together."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from pipeline.domain.contract.corrections import CorrectionV1, FeedbackV1
from pipeline.entrypoints.web import corrections, operations, upkeep, webhooks, whoami
from pipeline.entrypoints.web.middleware import BodyLimit, Told
from pipeline.entrypoints.web.openapi import described
from pipeline.entrypoints.web.pages.app import create_pages
from pipeline.entrypoints.web.pages.rendering import ROOT
from pipeline.entrypoints.web.parts import WebParts
from pipeline.entrypoints.web.problems import ProblemDetail, add_handlers, answers
from pipeline.telemetry.http_metrics import HttpMetrics

API_VERSION = "1.0.0"
"""Of the contract; a change that breaks a client gets another path than /v1."""
ROUTERS = (corrections.router, webhooks.router, operations.router, upkeep.router, whoami.router)
BODIES = (CorrectionV1, FeedbackV1, webhooks.NewWebhook, *operations.BODIES, *upkeep.BODIES)
"""Models of bodies that routes read by themselves, for OpenAPI."""


def create_app(parts: WebParts) -> FastAPI:
    """Return the application on its parts; nothing is opened before the first request needs it."""
    app = FastAPI(
        title="Corrigenda",
        version=API_VERSION,
        description="Send corrections of a deployed language model, and follow them until they are live.",
        openapi_url="/v1/openapi.json",
        # Both load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        responses=answers(401, 403, 500) | {"default": {"model": ProblemDetail, "description": "Any other problem"}},
        redirect_slashes=False,
    )
    app.state.parts = parts
    app.openapi = lambda: described(app, BODIES)  # type: ignore[method-assign]
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    # A mount answers below its path only, and people type the path itself.
    for path in ("/", ROOT):
        app.add_api_route(path, lambda: RedirectResponse(f"{ROOT}/"), include_in_schema=False)
    app.mount(ROOT, create_pages(parts))
    app.add_middleware(BodyLimit, max_bytes=parts.settings.web_max_body_bytes)
    app.add_middleware(Told)
    app.add_middleware(HttpMetrics)
    return app
