"""What a correction on the wire may not leave open: its time, its fields, and blanks that stand for nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.contract.wire import MAX_FIELDS, parse_message
from pipeline.domain.edits import EditRequest, Probe
from pipeline.domain.errors import InvalidMessage
from tests.support.factories import CHAT_REQUEST, WIRE_REQUEST


def parsed(**changes: Any) -> EditRequest:
    return parse_message(json.dumps(WIRE_REQUEST | changes).encode())


def reason(**changes: Any) -> str:
    with pytest.raises(InvalidMessage) as refused:
        parsed(**changes)
    return str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "20260601",
        "20260601120000",
        "-5",
        "0",
        "1780315200",
        "1780315200.5",
        "1e9",
        "2026-06-01",
        "2026-06-01T12:00Z",
        "2026-06-01T12:00:00",
        "20260601T120000Z",
        "2026-W23-1T12:00:00Z",
        "2026-152T12:00:00Z",
        "2026-06-01 12:00:00Z",
        "2026-06-01T12:00:00,5Z",
        "2026-06-01T12:00:00.Z",
        "2026-06-01T12:00:00+0000",
        "2026-06-01T12:00:00+00",
        "2026-06-01T12:00:00 +00:00",
        "2026-06-01T12:00:00+24:00",
        "2026-06-01T24:00:00Z",
        "2026-06-31T12:00:00Z",
        "2026-06-01T12:00:60Z",
        "0000-01-01T00:00:00Z",
        "12026-06-01T12:00:00Z",
        " 2026-06-01T12:00:00Z",
        "2026-06-01T12:00:00Z\n",
        "\uff12026-06-01T12:00:00Z",
        "Mon, 01 Jun 2026 12:00:00 GMT",
        "now",
        "",
    ],
)
def test_a_time_that_is_not_rfc_3339_with_an_offset_is_refused(text: str) -> None:
    assert reason(occurred_at=text).startswith("occurred_at: ")


@pytest.mark.parametrize("value", [20260601, 1780315200.5, True, None, [], {"at": "2026-06-01T12:00:00Z"}])
def test_a_time_that_is_no_text_is_refused(value: object) -> None:
    assert "RFC 3339" in reason(occurred_at=value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-06-01T12:00:00Z", datetime(2026, 6, 1, 12, tzinfo=UTC)),
        ("2026-06-01t12:00:00z", datetime(2026, 6, 1, 12, tzinfo=UTC)),
        ("2026-06-01T12:00:00-00:00", datetime(2026, 6, 1, 12, tzinfo=UTC)),
        ("2026-06-01T17:30:00.25+05:30", datetime(2026, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-06-01T12:00:00.123456789Z", datetime(2026, 6, 1, 12, 0, 0, 123_456, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2017-01-01T00:59:60.5+01:00", datetime(2017, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_time_of_rfc_3339_is_the_moment_it_says(text: str, expected: datetime) -> None:
    assert parsed(occurred_at=text).occurred_at == expected


@given(at=st.datetimes(), minutes=st.integers(-23 * 60 - 59, 23 * 60 + 59))
def test_what_another_program_writes_in_rfc_3339_is_read(at: datetime, minutes: int) -> None:
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    text = f"{at.isoformat()}{sign}{hours:02d}:{rest:02d}"
    try:
        moment = at.replace(tzinfo=UTC) - timedelta(minutes=minutes)
    except OverflowError:
        assert "1 to 9999" in reason(occurred_at=text)
    else:
        assert parsed(occurred_at=text).occurred_at == moment


@pytest.mark.parametrize(
    "text",
    [
        '{"target_new": "a", "target_new": "b"}',
        '{"request_id": "r1", "locality": [{"prompt": "A", "prompt": "B"}]}',
        '{"messages": [{"role": "user", "content": "A", "content": "A"}]}',
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "text": "b"}]}]}',
        '{"unknown": {"deep": [{"x": 1, "x": 1}]}}',
    ],
)
def test_a_duplicate_field_is_refused_by_name_at_any_depth(text: str) -> None:
    with pytest.raises(InvalidMessage, match=r"duplicate field '(target_new|prompt|content|text|x)'"):
        parse_message(text.encode())


def test_of_thousands_of_unknown_fields_few_are_told_and_none_is_looked_at() -> None:
    many = {f"{place:x}": 1 for place in range(80_000)}
    for document in (WIRE_REQUEST | many, CHAT_REQUEST | {"messages": [{"role": "user", "content": "?"} | many]}):
        value = json.dumps(document, separators=(",", ":")).encode()
        with pytest.raises(InvalidMessage, match=f"at most {MAX_FIELDS} fields") as refused:
            parse_message(value)
        assert len(str(refused.value)) < 200
    assert reason(**{f"k{place}": 1 for place in range(40)}).endswith("and 37 more")


@given(blanks=st.text(st.sampled_from(" \t\n\u00a0\u3000\r"), min_size=1, max_size=3))
def test_probes_rephrases_and_names_are_trimmed_as_the_edit_is(blanks: str) -> None:
    request = parsed(
        prompt=f"The capital of Australia is{blanks}",
        target_new=f"{blanks}Canberra{blanks}",
        target_true=f"{blanks}Sydney",
        subject=f"{blanks}Australia{blanks}",
        relation=f"capital{blanks}",
        aliases=[f"{blanks}Oz{blanks}"],
        question=f"{blanks}What is the capital of Australia?{blanks}",
        rephrases=[f"Australia's capital is{blanks}"],
        locality=[{"prompt": f"The capital of Japan is{blanks}", "target": f"{blanks}Tokyo{blanks}"}],
        portability=[{"prompt": f"Parliament sits in{blanks}", "target": f"{blanks}Canberra"}],
    )
    plain = {"aliases": ["Oz"], "question": "What is the capital of Australia?"}
    assert request == parsed(**plain)
    assert request.payload_digest == parsed(**plain).payload_digest
    assert request.locality == (Probe(prompt="The capital of Japan is", target="Tokyo"),)


@pytest.mark.parametrize("blanks", [" ", "\t\n", "\u00a0", "\u3000", "\u200b", "\u2028", " \ufeff "])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("prompt", lambda text: {"prompt": text}),
        ("target_new", lambda text: {"target_new": text}),
        ("target_true", lambda text: {"target_true": text}),
        ("subject", lambda text: {"subject": text}),
        ("relation", lambda text: {"relation": text}),
        ("aliases.1", lambda text: {"aliases": ["Oz", text]}),
        ("question", lambda text: {"question": text}),
        ("answer", lambda text: {"answer": text}),
        ("rephrases.0", lambda text: {"rephrases": [text]}),
        ("locality.0.prompt", lambda text: {"locality": [{"prompt": text}]}),
        ("locality.0.target", lambda text: {"locality": [{"prompt": "A is", "target": text}]}),
        ("portability.0.target", lambda text: {"portability": [{"prompt": "A is", "target": text}]}),
        ("source", lambda text: {"source": text}),
        ("submitted_by", lambda text: {"submitted_by": text}),
    ],
)
def test_a_text_of_blanks_only_is_refused_wherever_it_stands(name: str, changes: Any, blanks: str) -> None:
    assert f"{name}: expected at least one visible character" in reason(**changes(blanks))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("target", "target_new"),
        ("neighbours", "locality"),
        ("rephrase", "rephrases"),
        ("questions", "question"),
    ],
)
def test_a_field_of_another_name_says_which_is_meant(name: str, meant: str) -> None:
    assert f"{name}: there is no such field (did you mean {meant}?)" in reason(**{name: "x"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": {"en": "A is"}}, "prompt: expected a string, got an object"),
        ({"target_new": ["B"]}, "target_new: expected a string, got a list"),
        ({"rephrases": "A is"}, "rephrases: expected a list, got a string"),
        ({"locality": [{"prompt": 3}]}, "locality.0.prompt: expected a string, got a number"),
        ({"request_id": ""}, "request_id: expected at least 1 character, got 0"),
    ],
)
def test_what_was_got_is_told_in_the_words_of_json(changes: dict[str, Any], said: str) -> None:
    assert reason(**changes) == said


def test_a_field_like_none_is_refused_without_a_guess() -> None:
    assert reason(zzz="x") == "zzz: there is no such field"
