"""What the routes stand on: settings, stores, the producer, and how a caller shows who they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from pipeline import bootstrap
from pipeline.adapters.sql.web.corrections import SqlCorrectionStore
from pipeline.adapters.sql.web.submissions import SqlSubmissionStore
from pipeline.bootstrap import Stores
from pipeline.config import Settings
from pipeline.domain.review.people import Person
from pipeline.entrypoints.web.limits import BackPressure, RateLimit
from pipeline.services.accepting import Acceptor, BatchPublisher

IdentitySource = Callable[[Request], Person | None]
"""Says who sends a request, by one kind of proof; None where there is no such proof. It raises where it is wrong."""


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
    identities: tuple[IdentitySource, ...] = field(default=())
    """Proofs besides the header Authorization, such as the session of a browser; the first that is there counts."""


def web_parts(settings: Settings, publisher: BatchPublisher, identities: Sequence[IdentitySource] = ()) -> WebParts:
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
        identities=tuple(identities),
    )


def _parts(request: Request) -> WebParts:
    return cast(WebParts, request.app.state.parts)


Parts = Annotated[WebParts, Depends(_parts)]
"""The parameter of a route that needs something of the process."""
