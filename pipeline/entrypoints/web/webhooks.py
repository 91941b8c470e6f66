"""Routes by which people register URLs that are told what became of corrections."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.adapters.webhook_poster import checked
from pipeline.domain.contract.reasons import reasons_of
from pipeline.domain.contract.webhooks import DEFAULT_EVENTS, Undelivered, Webhook, WebhookEvent, new_secret
from pipeline.domain.errors import InvalidInput
from pipeline.domain.review.people import Person, Role
from pipeline.entrypoints.web.bodies import JSON, Body, media_type, object_of
from pipeline.entrypoints.web.identity import SIGNED_IN, require
from pipeline.entrypoints.web.openapi import body_of
from pipeline.entrypoints.web.parts import Parts
from pipeline.entrypoints.web.problems import Problem, answers

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], dependencies=SIGNED_IN)
Owner = Annotated[Person, Depends(require(Role.requester, Role.operator))]


class NewWebhook(BaseModel):
    """A URL to register."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(max_length=2_000, description="Where messages are posted to, https and public.")
    lineage: str | None = Field(
        None, max_length=100, description="All results of a lineage, for operators; else of your own corrections."
    )
    events: list[WebhookEvent] = Field(
        default_factory=lambda: list(DEFAULT_EVENTS),
        min_length=1,
        max_length=len(WebhookEvent),
        description="What is told.",
    )


class Failing(BaseModel):
    """What a receiver did not take."""

    since: datetime = Field(description="When the oldest of these messages was owed.")
    messages: int = Field(description="Tried in vain, and tried again.")
    given_up: int = Field(description="Not tried any more; an operator can have them sent again.")
    last_error: str = Field(description="What went wrong with the newest of them.")


class Registered(BaseModel):
    """A URL that is told."""

    id: str = Field(description="Of the registration.")
    url: str = Field(description="Where messages are posted to.")
    owner: str = Field(description="Who registered it.")
    lineage: str | None = Field(None, description="The lineage of which all results are told; else the owner's own.")
    events: list[WebhookEvent] = Field(description="What is told.")
    created_at: datetime = Field(description="When it was registered.")
    failing: Failing | None = Field(None, description="What its receiver did not take; null while all is taken.")


class RegisteredWithSecret(Registered):
    """A URL that was registered now."""

    secret: str = Field(description="Messages are signed with it (Standard Webhooks); it is not shown again.")


class Listed(BaseModel):
    """The registrations that the caller may see."""

    webhooks: list[Registered] = Field(description="The oldest first.")


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    responses=answers(400, 404, 413, 415, 422, 503),
    openapi_extra=body_of(NewWebhook, url="https://example.com/hook", events=["correction.live"]),
)
def register(request: Request, parts: Parts, person: Owner, body: Body) -> RegisteredWithSecret:
    """Register a URL that is told when corrections go live, are rejected or reverted."""
    media_type(request, JSON)
    wanted = _wanted(object_of(body))
    if wanted.lineage is not None and Role.operator not in person.roles:
        raise Problem(
            HTTPStatus.FORBIDDEN, "expected an operator, who may listen to all of a lineage; leave lineage out"
        )
    checked(wanted.url, allow_private=parts.settings.webhook_private_networks)
    secret = new_secret()
    made = parts.stores.api.webhooks.add(
        owner=person.name, url=wanted.url, lineage=wanted.lineage, events=wanted.events, secret=secret
    )
    return RegisteredWithSecret(**_said(made), secret=secret)


@router.get("", responses=answers(503))
def listed(parts: Parts, person: Owner) -> Listed:
    """List the caller's registrations and what fails of each; an operator sees everybody's. Secrets are not shown."""
    found = parts.stores.api.webhooks.of(None if Role.operator in person.roles else person.name)
    return Listed(webhooks=[Registered(**_said(one)) for one in found])


@router.delete("/{webhook_id}", status_code=HTTPStatus.NO_CONTENT, responses=answers(404, 503))
def remove(parts: Parts, person: Owner, webhook_id: str) -> Response:
    """Send nothing more to a URL."""
    parts.stores.api.webhooks.remove(webhook_id, owner=None if Role.operator in person.roles else person.name)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _wanted(document: dict[str, object]) -> NewWebhook:
    try:
        return NewWebhook.model_validate(document)
    except ValidationError as error:
        raise InvalidInput(reasons_of(error)) from error


def _said(webhook: Webhook) -> dict[str, object]:
    return {
        "id": webhook.webhook_id,
        "url": webhook.url,
        "owner": webhook.owner,
        "lineage": webhook.lineage,
        "events": list(webhook.events),
        "created_at": webhook.created_at,
        "failing": _failing(webhook.undelivered),
    }


def _failing(found: Undelivered | None) -> Failing | None:
    if found is None:
        return None
    return Failing(
        since=found.since, messages=found.num_failing, given_up=found.num_given_up, last_error=found.last_error
    )
