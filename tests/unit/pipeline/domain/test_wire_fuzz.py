"""Whatever bytes come, parsing answers with a request or with `InvalidMessage`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.domain.contract.messages import Message, PartitionKey
from pipeline.domain.contract.wire import MAX_MESSAGE_BYTES, parse_message
from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import InvalidMessage
from pipeline.services.intake import is_misrouted, parsed_message
from tests.support.factories import CHAT_REQUEST, WIRE_REQUEST

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def answered(value: bytes | None) -> EditRequest | str:
    """The request with everything intake will ask of it, or the reason; anything else escapes and fails the test."""
    try:
        request = parse_message(value)
    except InvalidMessage as error:
        return str(error)
    assert len(request.payload_digest) == 64
    assert request.conflict_key
    assert "\x00" not in json.dumps(request.as_json(), ensure_ascii=False)
    return request


@given(st.binary(max_size=400))
def test_any_bytes_are_answered(value: bytes) -> None:
    answered(value)


@given(JSON)
def test_any_json_is_answered(document: Any) -> None:
    answered(json.dumps(document).encode())


@settings(max_examples=400)
@given(
    request=st.sampled_from([WIRE_REQUEST, CHAT_REQUEST]),
    field=st.sampled_from(sorted({**WIRE_REQUEST, **CHAT_REQUEST, "question": "", "aliases": []})),
    value=JSON,
)
def test_a_correction_with_any_value_in_one_field_is_answered(request: dict[str, Any], field: str, value: Any) -> None:
    answered(json.dumps(request | {field: value}).encode())


@settings(max_examples=400)
@given(
    turns=st.lists(JSON | st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", 1]), "content": JSON})),
    field=st.sampled_from(["role", "content", "name", "refusal", "tool_calls"]),
    value=JSON,
)
def test_a_chat_of_any_turns_and_with_any_value_in_one_of_them_is_answered(
    turns: list[Any], field: str, value: Any
) -> None:
    answered(json.dumps(CHAT_REQUEST | {"messages": [*turns, *CHAT_REQUEST["messages"]]}).encode())
    last = CHAT_REQUEST["messages"][-1] | {field: value}
    answered(json.dumps(CHAT_REQUEST | {"messages": [last]}).encode())


@given(text=st.text(alphabet=st.characters(exclude_categories=()), max_size=30))
def test_any_text_in_a_prompt_or_a_turn_is_answered(text: str) -> None:
    answered(json.dumps(WIRE_REQUEST | {"prompt": text}).encode("utf-8", errors="surrogatepass"))
    turn = {"role": "user", "content": text}
    answered(json.dumps(CHAT_REQUEST | {"messages": [turn]}).encode("utf-8", errors="surrogatepass"))


@given(st.datetimes(), st.integers(-23, 23), st.integers(0, 59))
def test_any_time_with_an_offset_is_answered(at: Any, hours: int, minutes: int) -> None:
    text = f"{at.isoformat()}{hours:+03d}:{minutes:02d}"
    answered(json.dumps(WIRE_REQUEST | {"occurred_at": text}).encode())


@given(cut=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_correction_with_any_byte_changed_is_answered(cut: int, byte: int) -> None:
    value = bytearray(json.dumps(WIRE_REQUEST).encode())
    value[cut % len(value)] = byte
    answered(bytes(value))


@pytest.mark.parametrize("depth", [500, 900, 990, 2_000, 400_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_any_depth_is_answered(depth: int, opening: str) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]
    nested = opening * depth + "1" + closing * depth
    assert isinstance(answered(nested.encode()), str)
    assert isinstance(answered(f'{{"version": {nested}}}'.encode()), str)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "expected version 1"),
        ({"version": "1"}, "expected version 1"),
        ({"version": True}, "expected version 1"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "   "}, "prompt: .*visible"),
        ({"prompt": "a" * 2_001}, "prompt: .*2000"),
        ({"prompt": 7}, "prompt: .*string"),
        ({"prompt": "a\x00b"}, "NUL"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"target_new": ""}, "target_new"),
        ({"target_new": "\u200b"}, "target_new: .*visible"),
        ({"target_new": "a" * 201}, "target_new: .*200"),
        ({"lineage": "a/b"}, "lineage"),
        ({"lineage": None}, "lineage"),
        ({"rephrases": ["a"] * 33}, "rephrases"),
        ({"rephrases": "a"}, "rephrases"),
        ({"locality": [{"prompt": "x", "colour": 1}]}, "locality.0.colour"),
        ({"portability": [{"prompt": "x"}]}, "portability: .*target"),
        ({"occurred_at": "yesterday"}, "occurred_at"),
        ({"occurred_at": "2026-06-01T12:00:00"}, "occurred_at: .*offset"),
        ({"occurred_at": 1_700_000_000}, "occurred_at: .*RFC 3339"),
        ({"occurred_at": "0001-01-01T00:00:00+23:00"}, "occurred_at"),
        ({"occurred_at": "9999-12-31T23:59:59-23:00"}, "occurred_at"),
        ({"colour": "blue"}, "colour"),
        ({"rephrases": [2**60]}, "2.53"),
    ],
)
def test_a_refusal_names_the_field_and_what_was_expected(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        parse_message(json.dumps(WIRE_REQUEST | changes).encode())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "tombstone"),
        (b"", "does not parse"),
        (b'{"a": ', "does not parse"),
        (b"\xff", "UTF-8"),
        (b"\x00{}", "does not parse"),
        (b"[]", "expected a JSON object, got a list"),
        (b"null", "expected a JSON object, got null"),
        (b"[" * 5_000, "nested too deeply"),
        (b'{"request_id": NaN}', "NaN"),
        (b"a" * (MAX_MESSAGE_BYTES + 1), "at most"),
    ],
)
def test_what_is_no_object_is_refused_with_a_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        parse_message(value)


@pytest.mark.parametrize("missing", ["request_id", "lineage", "prompt", "target_new", "occurred_at"])
def test_what_is_missing_is_named(missing: str) -> None:
    document = {name: value for name, value in WIRE_REQUEST.items() if name != missing}
    with pytest.raises(InvalidMessage, match=missing):
        parse_message(json.dumps(document).encode())


@pytest.mark.parametrize(("key", "is_so"), [(None, False), (b"facts", False), (b"other", True), (b"\xff", True)])
def test_a_key_that_is_not_the_lineage_is_noticed_and_refuses_nothing(key: bytes | None, is_so: bool) -> None:
    parsed = parsed_message(_message(json.dumps(WIRE_REQUEST).encode(), key=key))
    assert parsed.refusal is None
    assert is_misrouted(parsed) is is_so


def test_a_message_that_is_no_correction_keeps_its_bytes_and_its_reason() -> None:
    parsed = parsed_message(_message(b"{"))
    assert parsed.request is None
    assert parsed.refusal is not None
    assert parsed.message.value == b"{"


def _message(value: bytes | None, key: bytes | None = None) -> Message:
    place = PartitionKey(cluster_id="c", topic_id="t", topic="requests", partition=0)
    return Message(partition=place, offset=0, key=key, value=value)
