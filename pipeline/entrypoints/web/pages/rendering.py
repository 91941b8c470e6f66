"""Templates, and the words and forms in which they show figures, times and texts of any script."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.domain.formats.counting import counted
from pipeline.domain.gates import bound_text
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.review.approvals import shown_actor
from pipeline.domain.review.people import Role
from pipeline.domain.wordings import wording_success
from pipeline.entrypoints.web.pages.sessions import Session

ROOT = "/review"
"""Where the pages are."""
HEADERS = {
    # Every script and style is a file of ours; htmx is told to add none.
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    # Forms have to say where they come from, to us alone.
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
}


def age(passed: timedelta) -> str:
    """Return how long ago something was, in the largest unit that fits."""
    seconds = max(0, int(passed.total_seconds()))
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            return counted(seconds // size, unit)
    return counted(seconds, "second")


def figure(value: Any) -> str:
    """Return a measured figure, or that it was not measured."""
    return f"{value:.3g}" if isinstance(value, int | float) else "not measured"


def moment(at: datetime) -> str:
    """Return a time in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def answer(text: str | None) -> str:
    """Return the first line of what a model said, which is what gates judge, with a sign that it went on."""
    said = (text or "").strip()
    line, _, rest = said.partition("\n")
    return f"{line} …" if rest.strip() else line or "nothing"


STANDS = {
    EditStatus.received: "waits for a batch",
    EditStatus.claimed: "is being edited",
    EditStatus.snapshotted: "is in the newest snapshot",
    EditStatus.rejected: "was rejected",
    EditStatus.superseded: "gave way to another correction",
    EditStatus.reverted: "was taken out",
    EditStatus.dead: "could not be edited",
}
"""Where an edit stands, for people who do not have our words for it."""


def stands(status: str) -> str:
    """Return where an edit stands, as the end of a sentence about it."""
    return STANDS[EditStatus(status)]


def segment(value: Any) -> str:
    """Return a text as one segment of a path, whatever is in it."""
    return quote(str(value), safe="")


_ENVIRONMENT = Environment(
    loader=PackageLoader("pipeline.entrypoints.web.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    age=age,
    answer=answer,
    counted=counted,
    figure=figure,
    moment=moment,
    segment=segment,
    stands=stands,
    wording_success=wording_success,
    bound=bound_text,
    actor=shown_actor,
)
_ENVIRONMENT.globals.update(root=ROOT, Role=Role)


def page(
    request: Request,
    template: str,
    session: Session | None,
    *,
    status: HTTPStatus = HTTPStatus.OK,
    **context: Any,
) -> HTMLResponse:
    """Return a whole page."""
    shown: Mapping[str, Any] = {"session": session, "path": request.url.path, **context}
    return HTMLResponse(fragment(template, **shown), status_code=status, headers=HEADERS)


def fragment(template: str, **context: Any) -> str:
    """Return a template with its context, in which texts are escaped."""
    return _ENVIRONMENT.get_template(template).render(context)
