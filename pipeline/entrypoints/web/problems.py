"""Every error as `application/problem+json` (RFC 9457), with what to change; none shows a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from pipeline.domain.contract.reasons import reasons_in
from pipeline.domain.errors import (
    CorrigendaError,
    IllegalTransition,
    InvalidInput,
    LoginRefused,
    Unavailable,
    UnknownLineage,
    UnknownRecord,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5
"""When to come back to a service that is away."""
STATUS_OF: Mapping[type[CorrigendaError], HTTPStatus] = {
    UnknownLineage: HTTPStatus.NOT_FOUND,
    UnknownRecord: HTTPStatus.NOT_FOUND,
    IllegalTransition: HTTPStatus.CONFLICT,
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    LoginRefused: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""What our errors are over HTTP; the first one that fits."""
UNSAID = "something went wrong on our side; it is in the log of the HTTP API"
HINTS: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: "expected a path of the API, see /v1/openapi.json",
    HTTPStatus.METHOD_NOT_ALLOWED: "expected one of the methods that the header Allow names",
}


class ProblemDetail(BaseModel):
    """What went wrong, for programs and for people."""

    model_config = ConfigDict(extra="allow")

    type: str = Field("about:blank", description="Kind of the problem, as a URI.")
    title: str = Field(description="The kind in a few words.", examples=["Unprocessable Entity"])
    status: int = Field(description="The HTTP status, again.", examples=[422])
    detail: str = Field(
        description="What was expected and what was got.", examples=["prompt: expected a prompt, got none"]
    )


class Problem(Exception):
    """An answer that says no.

    Args:
        status: of HTTP.
        detail: one sentence: what was expected, what was got.
        headers: more of the answer, such as Retry-After.
        **more: other members of the problem, which programs read.
    """

    def __init__(
        self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more


def problem_of(error: CorrigendaError) -> Problem:
    """Return one of our errors as an answer. What is wrong on our side is not told to the caller."""
    status = next((found for kind, found in STATUS_OF.items() if isinstance(error, kind)), None)
    if status is None:
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, UNSAID)
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        # The error names hosts and ports.
        detail = "a service behind the API does not answer now; the same request may succeed later"
        return Problem(status, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    return Problem(status, str(error))


def answer_of(problem: Problem) -> Response:
    """Return the response of a problem."""
    body = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": int(problem.status),
        "detail": problem.detail,
        **problem.more,
    }
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(content, status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route says in OpenAPI of the problems that it may answer with."""
    schema = {"$ref": "#/components/schemas/ProblemDetail"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def parameters_in(error: RequestValidationError) -> str:
    """Return what is wrong with the parameters of a request, each by its own name."""
    return reasons_in([{**one, "loc": one["loc"][1:]} for one in error.errors()])


def add_handlers(app: FastAPI) -> None:
    """Turn whatever a route raises into a problem."""
    log = structlog.get_logger(__name__)

    @app.exception_handler(Problem)
    def _problem(request: Request, error: Problem) -> Response:
        return answer_of(error)

    @app.exception_handler(CorrigendaError)
    def _ours(request: Request, error: CorrigendaError) -> Response:
        problem = problem_of(error)
        if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("request_failed", kind=type(error).__name__, error=str(error), ids=error.ids)
        return answer_of(problem)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        hint = HINTS.get(error.status_code, str(error.detail))
        return answer_of(Problem(HTTPStatus(error.status_code), hint, headers=error.headers))

    @app.exception_handler(RequestValidationError)
    def _parameters(request: Request, error: RequestValidationError) -> Response:
        return answer_of(Problem(HTTPStatus.UNPROCESSABLE_ENTITY, parameters_in(error)))

    @app.exception_handler(Exception)
    def _unforeseen(request: Request, error: Exception) -> Response:
        return answer_of(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, UNSAID))
