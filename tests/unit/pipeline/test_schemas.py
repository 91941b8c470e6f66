"""The kept JSON Schemas are what the models say, and mean what the models mean."""

from __future__ import annotations

import json

import jsonschema
import pytest

from pipeline import schemas
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import InvalidMessage
from tests.support.factories import WIRE_REQUEST
from tests.support.paths import ROOT


def test_the_kept_schemas_are_what_the_models_say() -> None:
    assert schemas.stale() == (), "run `python -m pipeline.schemas write`"
    assert set(schemas.generated()) == {"edits.requests.v1.json", "edits.results.v1.json"}


@pytest.mark.parametrize("name", ["edits.requests.v1.json", "edits.results.v1.json"])
def test_a_kept_schema_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((schemas.FOLDER / name).read_text()))


def test_what_a_producer_is_shown_is_a_correction_in_every_field() -> None:
    told = (ROOT / "CORRECTIONS.md").read_text(encoding="utf-8").partition("## What a producer sends")[2]
    shown = told.split("```")[1]
    stem, chat = (parse_object(json.loads(text)) for text in shown.strip().split("\n\n"))
    assert (stem.is_chat, stem.aliases, stem.target_new) == (False, ("Down Under",), "Canberra")
    assert (chat.is_chat, chat.prompt) == (True, "What is the capital of Australia?")
    assert stem.chat_prompt.begun == "The capital of Australia is"


@pytest.mark.parametrize(
    "changes", [{}, {"subject": None}, {"prompt": ""}, {"version": 2}, {"x": 1}, {"rephrases": "a"}, {"lineage": "a b"}]
)
def test_schema_and_parser_agree(changes: dict[str, object]) -> None:
    document = WIRE_REQUEST | changes
    schema = json.loads((schemas.FOLDER / "edits.requests.v1.json").read_text())
    is_valid = jsonschema.Draft202012Validator(schema).is_valid(document)
    try:
        is_parsed = isinstance(parse_object(document), EditRequest)
    except InvalidMessage:
        is_parsed = False
    assert is_valid is is_parsed
