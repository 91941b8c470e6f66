"""Routes that take corrections and feedback, and say where each correction stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from pipeline.domain.contract.answers import CorrectionStatus, Page, Receipt, Received, Refusal
from pipeline.domain.contract.corrections import correction_of
from pipeline.domain.errors import InvalidInput, Unavailable
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.review.people import SEES_EVERYTHING, Person, Role
from pipeline.entrypoints.web.answers import correction_answer
from pipeline.entrypoints.web.bodies import JSON, LINES, Body, items_of, media_type, object_of
from pipeline.entrypoints.web.identity import SIGNED_IN, require
from pipeline.entrypoints.web.openapi import CORRECTIONS_BODY, FEEDBACK_BODY
from pipeline.entrypoints.web.parts import Parts, WebParts
from pipeline.entrypoints.web.problems import RETRY_AFTER_SECONDS, Problem, answers
from pipeline.services.accepting import Accepted, IdReused, KeyReused, Refused, Result
from pipeline.telemetry import tracing

router = APIRouter(prefix="/v1", tags=["corrections"], dependencies=SIGNED_IN)
Requester = Annotated[Person, Depends(require(Role.requester))]
Reader = Annotated[Person, Depends(require(Role.requester, *SEES_EVERYTHING))]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="The same key makes a second try a duplicate; with another body it is refused.",
    ),
]
PLACE = "/v1/corrections"
WRONG = answers(400, 401, 403, 409, 413, 415, 422, 429, 503)


@router.post(
    "/corrections",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Receipt | Received,
    responses={
        202: {"description": "Accepted: all of them, if they are several."},
        207: {"model": Received, "description": "Some were accepted, and some were not."},
        **WRONG,
    },
    openapi_extra=CORRECTIONS_BODY,
)
def submit(request: Request, parts: Parts, person: Requester, body: Body, key: Key = None) -> Response:
    """Send one correction, or a list of them, or JSON lines.

    They go on the topic, as if they had been produced there. Of several, those that are right are accepted (207), and
    the answer says for each what became of it; where none is, the answer is 422.
    """
    found, is_one = items_of(body, media_type(request, JSON + LINES))
    return _accept(parts, person, found, key=key, is_one=is_one, request=request)


@router.post(
    "/feedback",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Receipt,
    responses=WRONG,
    openapi_extra=FEEDBACK_BODY,
)
def feedback(request: Request, parts: Parts, person: Requester, body: Body, key: Key = None) -> Response:
    """Send a chat that went wrong, as OpenAI's API has it, with the answer that would have been right.

    It becomes a correction whose answer holds the target: give `target_new`, the few words that matter, where the
    answer is a sentence.
    """
    media_type(request, JSON)
    return _accept(parts, person, [correction_of(object_of(body))], key=key, is_one=True, request=request)


@router.get("/corrections/{ref:path}", responses=answers(404, 422, 503))
def show(
    parts: Parts,
    person: Reader,
    ref: str,
    lineage: Annotated[str | None, Query(max_length=100, description="Where several lineages have the id.")] = None,
) -> CorrectionStatus:
    """Say where a correction stands and why, by the id of its receipt, of its edit, or its sender's own.

    Requesters see their own; reviewers, auditors and operators see everybody's.
    """
    if "\x00" in ref + (lineage or ""):
        raise InvalidInput("expected an id without NUL, got one that holds it")
    return correction_answer(parts.corrections.find(ref, lineage=lineage, submitted_by=_whose(person)))


@router.get("/corrections", responses=answers(422, 503))
def pages(
    parts: Parts,
    person: Reader,
    lineage: Annotated[str | None, Query(max_length=100, pattern=r"^[^/:\s\x00]+$")] = None,
    status: Annotated[EditStatus | None, Query(description="Only corrections with this status.")] = None,
    before: Annotated[UUID | None, Query(description="Edit id of the last one of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Most corrections of the page.")] = 50,
) -> Page:
    """List corrections that intake has recorded, newest first; requesters see their own."""
    rows = parts.corrections.page(
        lineage=lineage,
        status=status,
        submitted_by=_whose(person),
        before=str(before) if before else None,
        limit=limit + 1,
    )
    listed = [correction_answer(row) for row in rows[:limit]]
    more = {"lineage": lineage, "status": status, "before": listed[-1].edit_id if listed else None, "limit": limit}
    following = f"{PLACE}?{urlencode({name: value for name, value in more.items() if value is not None})}"
    return Page(corrections=listed, next=following if len(rows) > limit else None)


def _whose(person: Person) -> str | None:
    return None if person.sees_everything else person.name


def _accept(
    parts: WebParts,
    person: Person,
    found: Sequence[Mapping[str, Any] | InvalidInput],
    *,
    key: str | None,
    is_one: bool,
    request: Request,
) -> Response:
    parts.rate_limit.take(person.name, len(found))
    parts.back_pressure.check(_lineages_of(found, parts.submissions.lineage_names()))
    traced = tracing.valid(request.headers.get("traceparent"))
    headers = [("traceparent", traced.encode())] if traced else []
    try:
        results = parts.acceptor.accept(found, submitted_by=person.name, key=key, headers=headers)
    except KeyReused as error:
        raise Problem(HTTPStatus.CONFLICT, str(error)) from error
    except Unavailable as error:
        detail = (
            "the topic or the database does not answer now; send the same again with the same Idempotency-Key, "
            "or with your own request_id in each correction, so that none is made twice"
        )
        again = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=again) from error
    return _one(results[0]) if is_one else _several(results)


def _lineages_of(found: Sequence[Mapping[str, Any] | InvalidInput], known: Sequence[str]) -> set[str]:
    """Return the lineages that corrections are for; one that names none is for the only one there is."""
    only = known[0] if len(known) == 1 else None
    # A list, as what was said may be of any kind, also one that no set takes: it is refused later, with a reason.
    named = [one.get("lineage", only) for one in found if isinstance(one, Mapping)]
    return {name for name in known if name in named}


def _one(result: Result) -> Response:
    if isinstance(result, Refused):
        raise Problem(_status(result), str(result.error))
    receipt = _receipt(result)
    return Response(
        receipt.model_dump_json(),
        status_code=HTTPStatus.ACCEPTED,
        media_type=JSON[0],
        headers={"Location": receipt.status_url},
    )


def _several(results: Sequence[Result]) -> Response:
    said = [
        _receipt(one)
        if isinstance(one, Accepted)
        else Refusal(index=index, status=int(_status(one)), detail=str(one.error))
        for index, one in enumerate(results)
    ]
    accepted = sum(isinstance(one, Receipt) for one in said)
    answer = Received(accepted=accepted, refused=len(said) - accepted, results=said)
    if not accepted:
        first = next(one.detail for one in said if isinstance(one, Refusal))
        detail = f"expected corrections, got {len(said)} of which none can be accepted; the first: {first}"
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, **answer.model_dump(mode="json"))
    status = HTTPStatus.ACCEPTED if accepted == len(said) else HTTPStatus.MULTI_STATUS
    return Response(answer.model_dump_json(), status_code=status, media_type=JSON[0])


def _receipt(result: Accepted) -> Receipt:
    return Receipt(
        id=result.submission_id,
        request_id=result.request_id,
        lineage=result.lineage,
        status_url=f"{PLACE}/{result.submission_id}",
        is_duplicate=result.is_duplicate,
    )


def _status(result: Refused) -> HTTPStatus:
    return HTTPStatus.CONFLICT if isinstance(result.error, IdReused) else HTTPStatus.UNPROCESSABLE_ENTITY
