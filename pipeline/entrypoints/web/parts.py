"""What the routes stand on: settings, stores, the producer, and limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from pipeline import bootstrap
from pipeline.adapters.sql.web.corrections import SqlCorrectionStore
from pipeline.adapters.sql.web.submissions import SqlSubmissionStore
from pipeline.bootstrap import Stores
from pipeline.config import Settings
from pipeline.entrypoints.web.limits import BackPressure, RateLimit
from pipeline.services.accepting import Acceptor, BatchPublisher


@dataclass(frozen=True, kw_only=True, slots=True)
class WebParts:
    """Everything that the process was built with; routes get it with `Parts`."""

    settings: Settings
    """How the process behaves."""
    stores: Stores
    """The database, as the login of this process."""
    submissions: SqlSubmissionStore
    """Corrections that came through the API."""
    corrections: SqlCorrectionStore
    """Where corrections stand."""
    acceptor: Acceptor
    """Puts corrections on the topic that intake reads."""
    rate_limit: RateLimit
    """How many corrections each caller may send."""
    back_pressure: BackPressure
    """When no more corrections of a lineage are taken."""


def web_parts(settings: Settings, publisher: BatchPublisher) -> WebParts:
    """Return what the routes stand on; neither the database nor the broker is asked yet.

    Raises:
        Misconfigured: if the database is not named.
    """
    stores = bootstrap.stores(settings)
    acceptor = Acceptor(
        store=stores.api.submissions,
        publisher=publisher,
        topic=settings.requests_topic,
        max_ahead=settings.max_ahead,
    )
    return WebParts(
        settings=settings,
        stores=stores,
        submissions=stores.api.submissions,
        corrections=stores.api.corrections,
        acceptor=acceptor,
        rate_limit=RateLimit(settings.web_corrections_per_minute),
        back_pressure=BackPressure(settings.web_longest_wait, stores.api.submissions.oldest_waiting),
    )


def _parts(request: Request) -> WebParts:
    return cast(WebParts, request.app.state.parts)


Parts = Annotated[WebParts, Depends(_parts)]
"""The parameter of a route that needs something of the process."""
