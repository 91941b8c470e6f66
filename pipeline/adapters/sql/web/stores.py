"""The stores of the HTTP API together, on one pool of connections."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from pipeline.adapters.sql.web.corrections import SqlCorrectionStore
from pipeline.adapters.sql.web.reading import SqlPageStore
from pipeline.adapters.sql.web.submissions import SqlSubmissionStore
from pipeline.adapters.sql.web.webhooks import SqlWebhookStore


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiStores:
    """What only the HTTP API, its webhooks and the review pages ask."""

    submissions: SqlSubmissionStore
    """Corrections that came through the HTTP API."""
    corrections: SqlCorrectionStore
    """Where corrections stand, for whoever sent them."""
    webhooks: SqlWebhookStore
    """Where results are sent."""
    pages: SqlPageStore
    """What the review pages show."""


def api_stores(engine: Engine) -> ApiStores:
    """Return the stores on an engine."""
    return ApiStores(
        submissions=SqlSubmissionStore(engine),
        corrections=SqlCorrectionStore(engine),
        webhooks=SqlWebhookStore(engine),
        pages=SqlPageStore(engine),
    )
