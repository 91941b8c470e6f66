"""What operators do: hold and resume lineages, try dead edits again, owe again what was given up."""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from pipeline.domain.review.people import Role
from pipeline.entrypoints.web.operations import MAX_CHOSEN, actor_of, retrier_of
from pipeline.entrypoints.web.pages.rendering import HEADERS, ROOT, page, segment
from pipeline.entrypoints.web.pages.sessions import Denied, Session
from pipeline.entrypoints.web.pages.signed_in import REASON_CHARS, form_of, reader_with
from pipeline.entrypoints.web.parts import Parts

router = APIRouter()

SHOWN = 50
"""Dead edits of each lineage, and side effects that were given up, that the page shows."""
Operator = Annotated[Session, Depends(form_of(Role.operator))]
Reason = Annotated[str, Form(max_length=REASON_CHARS)]


class Done(StrEnum):
    """What somebody did here last."""

    held = "held"
    resumed = "resumed"
    retried = "retried"
    resent = "resent"
    nothing = "nothing"


class Wanted(StrEnum):
    """What a form asks for."""

    hold = "hold"
    resume = "resume"
    chosen = "chosen"
    all = "all"


SAID = {
    Done.held: "Held: no batch of this lineage starts until somebody resumes it.",
    Done.resumed: "Resumed: batches of this lineage are edited again.",
    Done.retried: "They wait in the queue again, with all their attempts.",
    Done.resent: "They are owed again and will be tried now.",
    Done.nothing: "There was nothing of that kind left to do: somebody else was here before you.",
}


@router.get("/operations")
def operations(
    request: Request,
    parts: Parts,
    session: Annotated[Session, Depends(reader_with(Role.operator, Role.auditor))],
    said: Done | None = None,
) -> Response:
    """Show what is held, what is dead and what was given up, with the forms to go on."""
    dead: dict[str, list[object]] = {}
    for row in parts.stores.api.pages.dead(limit=SHOWN + 1):
        dead.setdefault(row["lineage"], []).append(row)
    given_up = parts.stores.outbox.given_up(limit=SHOWN + 1)
    return page(
        request,
        "operations.html",
        session,
        lineages=parts.stores.lineages.lineages(),
        dead=dead,
        given_up=given_up,
        shown=SHOWN,
        may=Role.operator in session.person.roles,
        said=SAID[said] if said else None,
    )


@router.post("/lineages/{lineage}/hold")
def hold(
    parts: Parts,
    session: Annotated[Session, Depends(form_of(Role.operator, Role.reviewer))],
    lineage: str,
    wanted: Annotated[Wanted, Form()],
    seen: Annotated[str, Form(max_length=10_000)] = "",
    reason: Reason = "",
) -> Response:
    """Hold a lineage, or lift the hold that the person saw."""
    actor, why = actor_of(session.person), given_reason(reason)
    if wanted is Wanted.hold:
        parts.stores.lineages.hold(lineage, reason=why, actor=actor)
    else:
        parts.stores.lineages.resume(lineage, actor=actor, reason=why, seen=seen)
    return _back(Done.held if wanted is Wanted.hold else Done.resumed, lineage)


@router.post("/lineages/{lineage}/retry")
def retry(
    parts: Parts,
    session: Operator,
    lineage: str,
    wanted: Annotated[Wanted, Form()],
    edit: Annotated[list[str], Form(max_length=MAX_CHOSEN)] = [],  # noqa: B006 (FastAPI copies it)
    because: Annotated[str, Form(max_length=1_000)] = "",
    reason: Reason = "",
) -> Response:
    """Try dead edits of a lineage again: those that were chosen, or all."""
    again, actor, why = retrier_of(parts), actor_of(session.person), given_reason(reason)
    if wanted is Wanted.all:
        done = again.retry_all(lineage, because=because, actor=actor, reason=why)
    else:
        done = again.retry(lineage, _chosen(edit), actor=actor, reason=why)
    return _back(Done.retried if done.edit_ids else Done.nothing)


@router.post("/operations/resend")
def resend(
    parts: Parts,
    session: Operator,
    wanted: Annotated[Wanted, Form()],
    item: Annotated[list[UUID], Form(max_length=MAX_CHOSEN)] = [],  # noqa: B006 (FastAPI copies it)
    reason: Reason = "",
) -> Response:
    """Owe side effects again that were given up: those that were chosen, or all."""
    why = given_reason(reason)
    chosen = None if wanted is Wanted.all else _chosen([str(one) for one in item])
    found = parts.stores.outbox.resend(chosen, actor=actor_of(session.person), reason=why)
    return _back(Done.resent if found else Done.nothing)


def given_reason(reason: str) -> str:
    """Return a reason without blanks around it.

    Raises:
        Denied: if there is none.
    """
    if not reason.strip():
        raise Denied(HTTPStatus.UNPROCESSABLE_ENTITY, "Please go back and give a reason: auditors will look for it.")
    return reason.strip()


def _chosen(ids: list[str]) -> list[str]:
    if not ids:
        raise Denied(HTTPStatus.UNPROCESSABLE_ENTITY, "Please go back and choose at least one.")
    return ids


def _back(done: Done, lineage: str | None = None) -> Response:
    """Lead to where the form was: the page of operations, or a lineage's own, which reviewers see too."""
    where = f"{ROOT}/lineages/{segment(lineage)}/snapshots" if lineage is not None else f"{ROOT}/operations"
    return RedirectResponse(f"{where}?said={done}", HTTPStatus.SEE_OTHER, headers=HEADERS)
