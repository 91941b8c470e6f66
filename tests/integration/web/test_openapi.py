"""The OpenAPI document is complete and true: schemathesis tries what it says, and what it does not allow."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.domain.review.people import Role
from tests.support.store_rig import StoreRig
from tests.support.web_rig import WebRig

NUM_EXAMPLES = 10
# Not that all that fits the schema is accepted: a text needs a letter that somebody can see, which a schema cannot say.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OURS = "/v1/"
"""The pages are no part of the contract."""


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as it says", "otherwise"])
def test_every_operation_answers_as_the_document_says(web: WebRig, rig: StoreRig, mode: GenerationMode) -> None:
    headers = dict(web.token_of("ada", list(Role)))
    # More than an example may send in a minute.
    app = web.again(web_corrections_per_minute=1_000_000).app
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app)
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case: Case) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS)

        answers()
        tried.append(operation.label)
    assert {"POST /v1/corrections", "POST /v1/feedback", "GET /v1/corrections", "POST /v1/webhooks"} <= set(tried)


def test_the_document_has_a_version_examples_and_problems(web: WebRig) -> None:
    document = web.anonymous().get("/v1/openapi.json").json()
    assert document["info"]["version"] == "1.0.0"
    assert set(document["components"]["securitySchemes"]) == {"bearer", "basic"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            problems = [one for status, one in operation["responses"].items() if status[0] in "45"]
            assert problems, (method, path)
            assert all("application/problem+json" in one["content"] for one in problems), (method, path)


def test_the_examples_of_the_document_are_right(web: WebRig, rig: StoreRig) -> None:
    client = web.client(Role.requester)
    paths = client.get("/v1/openapi.json").json()["paths"]
    for path in ("/v1/corrections", "/v1/feedback"):
        examples = paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for example in examples.values():
            assert client.post(path, json=example["value"]).status_code == 202
