"""What the routes stand on: settings, stores, the producer, and how a caller shows who they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from pipeline.bootstrap import Stores
from pipeline.config import Settings
from pipeline.domain.people import Person
from pipeline.services.ports import Publisher

IdentitySource = Callable[[Request], Person | None]
"""Says who sends a request, by one kind of proof; None where there is no such proof. It raises where it is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebParts:
    """Everything that the process was built with; routes get it with `Parts`."""

    settings: Settings
    """How the process behaves."""
    stores: Stores
    """The database, as the login of this process."""
    publisher: Publisher
    """Where corrections go: the topic that intake reads."""
    identities: tuple[IdentitySource, ...] = field(default=())
    """Proofs besides the header Authorization, such as the session of a browser; the first that is there counts."""


def _parts(request: Request) -> WebParts:
    return cast(WebParts, request.app.state.parts)


Parts = Annotated[WebParts, Depends(_parts)]
"""The parameter of a route that needs something of the process."""
