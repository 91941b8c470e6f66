"""Routes for operators: hold and resume lineages, try dead edits again, owe again what was given up."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.domain.contract.reasons import reasons_of
from pipeline.domain.errors import InvalidInput
from pipeline.domain.review.approvals import PERSON
from pipeline.domain.review.people import SEES_EVERYTHING, Person, Role
from pipeline.entrypoints.web.bodies import JSON, Body, media_type, object_of
from pipeline.entrypoints.web.identity import SIGNED_IN, require
from pipeline.entrypoints.web.openapi import body_of
from pipeline.entrypoints.web.parts import Parts, WebParts
from pipeline.entrypoints.web.problems import Problem, answers
from pipeline.services.retrying import Retrier

router = APIRouter(prefix="/v1", tags=["operations"], dependencies=SIGNED_IN)
Operator = Annotated[Person, Depends(require(Role.operator))]
Resumer = Annotated[Person, Depends(require(Role.operator, Role.reviewer))]
Reader = Annotated[Person, Depends(require(*SEES_EVERYTHING))]
WRONG = answers(400, 404, 409, 413, 415, 422, 503)
MAX_CHOSEN = 1_000
"""Most edits or side effects that one call names."""

Reason = Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"\S", description="Why, for the audit trail.")]


class HoldWanted(BaseModel):
    """Why a lineage is to be held."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Reason


class ResumeWanted(BaseModel):
    """Why a lineage goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Reason
    hold: str | None = Field(None, description="The hold that you saw; if there is another one now, nothing is lifted.")


class RetryWanted(BaseModel):
    """Which dead edits are tried again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Reason
    edits: list[str] = Field(default_factory=list, max_length=MAX_CHOSEN, description="Edit ids or request ids.")
    all: bool = Field(False, description="Every dead edit of the lineage.")
    because: str = Field("", max_length=1_000, description="With all: only those whose own reason contains this text.")

    @model_validator(mode="after")
    def _one_choice(self) -> RetryWanted:
        if bool(self.edits) == self.all or (self.because and not self.all):
            raise ValueError("expected edits, or all with or without because; got neither, or both")
        return self


class ResendWanted(BaseModel):
    """Which side effects are owed again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Reason
    ids: list[UUID] = Field(default_factory=list, max_length=MAX_CHOSEN, description="Ids from GET /v1/side-effects.")
    all: bool = Field(False, description="Every one that was given up.")

    @model_validator(mode="after")
    def _one_choice(self) -> ResendWanted:
        if bool(self.ids) == self.all:
            raise ValueError("expected ids or all, got neither, or both")
        return self


class LineageStanding(BaseModel):
    """Where a lineage stands."""

    lineage: str = Field(description="Its name.")
    head_seq: int = Field(description="The newest snapshot; 0 is the base.")
    champion_seq: int = Field(description="The snapshot that is live; 0 is the base.")
    hold: str | None = Field(None, description="Why no batch is edited now; null if it goes on.")


class Lineages(BaseModel):
    """The lineages of this database, and where each stands."""

    lineages: list[LineageStanding] = Field(description="By name.")


class RetriedEdits(BaseModel):
    """What became of a wish to try edits again."""

    retried: list[str] = Field(description="Edits that wait in the queue again, with all their attempts.")
    left: dict[str, str] = Field(description="Status by edit id of those that were not dead; they stay as they are.")


class GivenUp(BaseModel):
    """A side effect that nothing tries any more."""

    id: UUID = Field(description="To resend it with.")
    kind: str = Field(description="doorbell, result, dead_letter, register, reregister, champion or webhook.")
    attempts: int = Field(description="How often it was tried.")
    given_up_at: datetime = Field(description="When the last try failed.")
    error: str | None = Field(None, description="What the last try failed of.")


class SideEffects(BaseModel):
    """Side effects that were given up."""

    given_up: list[GivenUp] = Field(description="The longest given up first.")


class Resent(BaseModel):
    """Side effects that are owed again."""

    resent: list[str] = Field(description="Their ids; those that a later result has overtaken are closed instead.")


Wanted = TypeVar("Wanted", bound=BaseModel)
BODIES = (HoldWanted, ResumeWanted, RetryWanted, ResendWanted)


@router.get("/lineages", responses=answers(503))
def lineages(parts: Parts, person: Reader) -> Lineages:
    """List the lineages, and which are held."""
    return Lineages(lineages=[_standing(parts, one.settings.name) for one in parts.stores.lineages.lineages()])


@router.post("/lineages/{lineage}/hold", responses=WRONG, openapi_extra=body_of(HoldWanted, reason="the disk is full"))
def hold(request: Request, parts: Parts, person: Resumer, lineage: str, body: Body) -> LineageStanding:
    """Let no batch of a lineage start; what is being edited ends. A lineage that is held keeps its first reason."""
    wanted = wanted_of(HoldWanted, request, body)
    parts.stores.lineages.hold(checked_name(lineage), reason=wanted.reason.strip(), actor=actor_of(person))
    return _standing(parts, lineage)


@router.post(
    "/lineages/{lineage}/resume", responses=WRONG, openapi_extra=body_of(ResumeWanted, reason="the disk has room again")
)
def resume(request: Request, parts: Parts, person: Resumer, lineage: str, body: Body) -> LineageStanding:
    """Lift a hold; a lineage that is not held stays as it is."""
    wanted = wanted_of(ResumeWanted, request, body)
    actor, reason = actor_of(person), wanted.reason.strip()
    parts.stores.lineages.resume(checked_name(lineage), actor=actor, reason=reason, seen=wanted.hold)
    return _standing(parts, lineage)


@router.post(
    "/lineages/{lineage}/retry", responses=WRONG, openapi_extra=body_of(RetryWanted, reason="mended", all=True)
)
def retry(request: Request, parts: Parts, person: Operator, lineage: str, body: Body) -> RetriedEdits:
    """Try dead edits again, once what they died of is mended. A rejected one is sent again as a new correction."""
    wanted, actor = wanted_of(RetryWanted, request, body), actor_of(person)
    again, name, reason = retrier_of(parts), checked_name(lineage), wanted.reason.strip()
    if wanted.all:
        done = again.retry_all(name, because=wanted.because, actor=actor, reason=reason)
    else:
        done = again.retry(name, wanted.edits, actor=actor, reason=reason)
    return RetriedEdits(retried=list(done.edit_ids), left=dict(done.left))


@router.get("/side-effects", responses=answers(422, 503))
def side_effects(
    parts: Parts,
    person: Annotated[Person, Depends(require(Role.operator, Role.auditor))],
    limit: Annotated[int, Query(ge=1, le=1_000, description="Most of them.")] = 100,
) -> SideEffects:
    """List side effects that were given up after their last try."""
    found = parts.stores.outbox.given_up(limit=limit)
    return SideEffects(given_up=[GivenUp(**row, id=row["outbox_id"]) for row in found])


@router.post("/side-effects/resend", responses=WRONG, openapi_extra=body_of(ResendWanted, reason="mended", all=True))
def resend(request: Request, parts: Parts, person: Operator, body: Body) -> Resent:
    """Owe side effects that were given up anew, with all their tries."""
    wanted = wanted_of(ResendWanted, request, body)
    chosen = None if wanted.all else [str(one) for one in wanted.ids]
    found = parts.stores.outbox.resend(chosen, actor=actor_of(person), reason=wanted.reason.strip())
    if chosen and not found:
        raise Problem(HTTPStatus.NOT_FOUND, f"expected the id of a side effect that was given up, got {chosen[0]}")
    return Resent(resent=list(found))


def actor_of(person: Person) -> str:
    """Return how the audit trail names somebody who acts here."""
    return f"{PERSON}{person.name}"


def retrier_of(parts: WebParts) -> Retrier:
    """Return what gives dead edits another try, on the stores of the process."""
    return Retrier(review=parts.stores.review, history=parts.stores.history)


def checked_name(lineage: str) -> str:
    """Return a lineage's name of a path.

    Raises:
        InvalidInput: if no database could be asked for it.
    """
    if "\x00" in lineage:
        raise InvalidInput("expected the name of a lineage, got one that holds NUL")
    return lineage


def _standing(parts: WebParts, name: str) -> LineageStanding:
    found = parts.stores.lineages.lineage(name)
    return LineageStanding(lineage=name, head_seq=found.head_seq, champion_seq=found.champion_seq, hold=found.hold)


def wanted_of(model: type[Wanted], request: Request, body: bytes) -> Wanted:
    """Return what a body asks for.

    Raises:
        InvalidInput: if it is none of that model; the message names each field that is wrong.
    """
    media_type(request, JSON)
    try:
        return model.model_validate(object_of(body))
    except ValidationError as error:
        raise InvalidInput(reasons_of(error)) from error
