"""Corrections: the latest ones, one with its history and that of its fact, and the form that takes it out again."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.review.approvals import PERSON
from pipeline.domain.review.people import Role
from pipeline.entrypoints.web.pages.rendering import HEADERS, ROOT, page, segment
from pipeline.entrypoints.web.pages.sessions import Denied, Session
from pipeline.entrypoints.web.pages.signed_in import REASON_CHARS, Reader, form_of
from pipeline.entrypoints.web.pages.snapshots import PAGE_ROWS, review_of
from pipeline.entrypoints.web.parts import Parts

router = APIRouter()

MAX_OF_FACT = 100
"""Corrections of one fact that are shown."""
REVERTIBLE = frozenset({"queued", "candidate", "live", "rolled back"})
"""States in which an edit can be taken out."""


@router.get("/lineages/{lineage}/edits")
def edits(
    request: Request,
    parts: Parts,
    session: Reader,
    lineage: str,
    before: Annotated[str | None, Query(max_length=36)] = None,
) -> Response:
    """Show a lineage's corrections, the latest first, a page at a time."""
    rows = parts.stores.api.pages.edits(lineage, before=before, limit=PAGE_ROWS + 1)
    more = rows[PAGE_ROWS - 1]["edit_id"] if len(rows) > PAGE_ROWS else None
    return page(request, "edits.html", session, lineage=lineage, rows=rows[:PAGE_ROWS], more=more)


@router.get("/lineages/{lineage}/find")
def find(lineage: str, parts: Parts, session: Reader, id: Annotated[str, Query(max_length=500)] = "") -> Response:
    """Lead to the correction with an edit id or a request id."""
    found = parts.stores.history.edit(lineage, id.strip())
    target = f"{ROOT}/lineages/{segment(lineage)}/edits/{found['edit_id']}"
    return RedirectResponse(target, HTTPStatus.SEE_OTHER, headers=HEADERS)


@router.get("/lineages/{lineage}/edits/{edit_id}")
def edit(
    request: Request, parts: Parts, session: Reader, lineage: str, edit_id: str, reverted: bool = False
) -> Response:
    """Show one correction: where it stands and why, what was measured, its audit lines, and others of its fact."""
    found = parts.stores.history.edit(lineage, edit_id)
    others = parts.stores.api.pages.same_fact(found["edit_id"], limit=MAX_OF_FACT)
    may_revert = Role.reviewer in session.person.roles and found["state"] in REVERTIBLE
    may_retry = Role.operator in session.person.roles and found["state"] == EditStatus.dead
    said = (
        "Asked for: a candidate without this edit is being made. Approve it to take the edit out." if reverted else ""
    )
    return page(
        request,
        "edit.html",
        session,
        lineage=lineage,
        edit=found,
        others=others,
        may_revert=may_revert,
        may_retry=may_retry,
        said=said,
    )


@router.post("/lineages/{lineage}/edits/{edit_id}")
def revert(
    parts: Parts,
    session: Annotated[Session, Depends(form_of(Role.reviewer))],
    lineage: str,
    edit_id: str,
    reason: Annotated[str, Form(max_length=REASON_CHARS)] = "",
) -> Response:
    """Ask for a candidate without a correction."""
    if not reason.strip():
        raise Denied(HTTPStatus.UNPROCESSABLE_ENTITY, "Please go back and give a reason: auditors will look for it.")
    actor = f"{PERSON}{session.person.name}"
    review_of(parts).revert(lineage, [edit_id], actor=actor, reason=reason.strip())
    target = f"{ROOT}/lineages/{segment(lineage)}/edits/{segment(edit_id)}?reverted=1"
    return RedirectResponse(target, HTTPStatus.SEE_OTHER, headers=HEADERS)
