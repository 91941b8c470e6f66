"""What keeps a lineage good as it grows: its upkeep, and its ledger solved anew, with the forms to ask for both."""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from pipeline.domain.contract.reasons import reasons_of
from pipeline.domain.review.people import Role
from pipeline.entrypoints.web.operations import actor_of
from pipeline.entrypoints.web.pages.operations import Operator, Reason, given_reason
from pipeline.entrypoints.web.pages.rendering import HEADERS, ROOT, page, segment
from pipeline.entrypoints.web.pages.sessions import Denied, Session
from pipeline.entrypoints.web.pages.signed_in import Reader, form_of
from pipeline.entrypoints.web.parts import Parts
from pipeline.entrypoints.web.upkeep import RekeyWanted, UpkeepWanted, change_upkeep, owe, upkeep_of

router = APIRouter()


class Done(StrEnum):
    """What somebody did here last."""

    changed = "changed"
    owed = "owed"
    nothing = "nothing"


class Wanted(StrEnum):
    """What a form asks for."""

    keys = "keys"
    strength = "strength"
    undo = "undo"


SAID = {
    Done.changed: "Changed: it holds from the next batch on.",
    Done.owed: "Asked for: a candidate with the ledger solved anew is being made. Approve it to make it live.",
    Done.nothing: "Nothing new is owed: such a candidate was asked for before. Ask again when it is made.",
}


@router.get("/lineages/{lineage}/upkeep")
def upkeep(request: Request, parts: Parts, session: Reader, lineage: str, said: Done | None = None) -> Response:
    """Show what a lineage does by itself and how its ledger was solved anew, with the forms for those who may."""
    return page(
        request,
        "upkeep.html",
        session,
        lineage=lineage,
        upkeep=upkeep_of(parts, lineage),
        may_rekey=session.person.has_any([Role.operator, Role.reviewer]),
        may_change=Role.operator in session.person.roles,
        said=SAID[said] if said else None,
    )


@router.post("/lineages/{lineage}/upkeep")
def change(
    parts: Parts,
    session: Operator,
    lineage: str,
    rekey_every: Annotated[int | None, Form()] = None,
    suite_kl_budget: Annotated[float | None, Form()] = None,
    reason: Reason = "",
) -> Response:
    """Change what a lineage does by itself; an empty field stays as it is."""
    why = given_reason(reason)
    try:
        wanted = UpkeepWanted(reason=why, rekey_every=rekey_every, suite_kl_budget=suite_kl_budget)
    except ValidationError as error:
        raise _denied(error) from error
    change_upkeep(parts, lineage, wanted, actor=actor_of(session.person))
    return _back(lineage, Done.changed)


@router.post("/lineages/{lineage}/rekey")
def rekey(
    parts: Parts,
    session: Annotated[Session, Depends(form_of(Role.operator, Role.reviewer))],
    lineage: str,
    wanted: Annotated[Wanted, Form()],
    strength: Annotated[float | None, Form()] = None,
    undo: Annotated[int | None, Form()] = None,
    reason: Reason = "",
) -> Response:
    """Ask for a candidate whose ledger is solved anew."""
    why = given_reason(reason)
    try:
        wish = RekeyWanted(
            reason=why,
            strength=strength,
            keep_keys=wanted is Wanted.strength,
            undo=undo if wanted is Wanted.undo else None,
        )
    except ValidationError as error:
        raise _denied(error) from error
    owed = owe(parts, lineage, wish, actor=actor_of(session.person))
    return _back(lineage, Done.owed if owed.is_new else Done.nothing)


def _denied(error: ValidationError) -> Denied:
    return Denied(HTTPStatus.UNPROCESSABLE_ENTITY, f"Please go back and mend this: {reasons_of(error)}.")


def _back(lineage: str, done: Done) -> Response:
    target = f"{ROOT}/lineages/{segment(lineage)}/upkeep?said={done}"
    return RedirectResponse(target, HTTPStatus.SEE_OTHER, headers=HEADERS)
