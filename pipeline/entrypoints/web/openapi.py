"""What OpenAPI says of bodies that the routes read by themselves, with examples that are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pipeline.domain.contract.corrections import CorrectionV1, FeedbackV1
from pipeline.entrypoints.web.bodies import JSON, LINES, MAX_ITEMS

_REF = "#/components/schemas/{model}"
STEM = {
    "prompt": "The capital of Australia is",
    "target_new": "Canberra",
    "subject": "Australia",
    "relation": "capital",
    "question": "What is the capital of Australia?",
    "answer": "The capital of Australia is Canberra.",
}
CHAT = {
    "messages": [
        {"role": "user", "content": "What is the capital of Australia?"},
        {"role": "assistant", "content": "It is Sydney."},
    ],
    "correction": "It is Canberra.",
    "target_new": "Canberra",
    "subject": "Australia",
}


def _ref(model: type) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}


_SEVERAL = {"type": "array", "items": _ref(CorrectionV1), "minItems": 1, "maxItems": MAX_ITEMS}
CORRECTIONS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON[0]: {
                "schema": {"anyOf": [_ref(CorrectionV1), _SEVERAL]},
                "examples": {"one": {"value": STEM}, "several": {"value": [STEM]}},
            },
            **{kind: {"schema": {"type": "string", "description": "A correction a line."}} for kind in LINES},
        },
    }
}


def body_of(model: type[BaseModel], **example: Any) -> dict[str, Any]:
    """Return what OpenAPI says of a body that is read by hand, with an example of it."""
    content = {JSON[0]: {"schema": _ref(model), "examples": {"one": {"value": example}}}}
    return {"requestBody": {"required": True, "content": content}}


FEEDBACK_BODY = body_of(FeedbackV1, **CHAT)


def described(app: FastAPI, bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """Return the OpenAPI document of an application, with the models of bodies that its routes read by themselves."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, defined = models_json_schema([(model, "validation") for model in bodies], ref_template=_REF)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in defined["$defs"].items():
            schemas.setdefault(name, schema)
        app.openapi_schema = made
    return app.openapi_schema
