"""JSON as it is read from messages and from files: strict, and by lines that end where JSON's do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.json_lines import json_lines, json_value, text_lines

OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=3), max_size=5)


@given(
    documents=OBJECTS, end=st.sampled_from(["\n", "\r\n"]), is_ended=st.booleans(), mark=st.sampled_from(["", "\ufeff"])
)
def test_what_is_written_a_line_each_is_read_again_whatever_it_holds(
    documents: list[dict[str, str]], end: str, is_ended: bool, mark: str
) -> None:
    text = mark + end.join(json.dumps(document, ensure_ascii=False) for document in documents) + end * is_ended
    if not any("\x00" in part for document in documents for pair in document.items() for part in pair):
        assert [found for _, found in json_lines(text.encode(), "x")] == documents


def test_blank_lines_are_skipped_and_lines_keep_their_numbers() -> None:
    content = '{"a": 1}\r\n\r\n  \n\ufeff{"b": "\u2028\x85"}'.encode()
    assert list(json_lines(content, "x")) == [(1, {"a": 1}), (4, {"b": "\u2028\x85"})]


def test_lines_that_are_no_utf_8_no_json_or_no_object_are_named() -> None:
    for line, complaint in [
        (b"\xff", "UTF-8, got other bytes"),
        (b"{", "does not parse"),
        (b"[1]", "object.*list"),
    ]:
        with pytest.raises(InvalidInput, match=complaint) as refused:
            list(json_lines(b'{"a": 1}\n' + line, "facts.jsonl"))
        assert "line 2 of facts.jsonl" in str(refused.value)
    with pytest.raises(InvalidInput, match="line 1"):
        list(text_lines("text".encode("utf-16"), "x"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"a": 1, "a": 1}', "a"),
        ('{"a": 1, "b": {"c": [{"d": 1, "e": 2, "d": 3}]}}', "d"),
        ('[[{"x": null, "x": null}]]', "x"),
        (r'{"\u0061": 1, "a": 2}', "a"),
        ('{"": 1, "": 2}', ""),
        ('{"é": 1, "é": 2}', "é"),
    ],
)
def test_a_field_that_stands_twice_is_refused_at_any_depth(text: str, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"duplicate field {name!r}"):
        json_value(text)


def test_fields_of_other_objects_and_of_other_letters_are_no_duplicates() -> None:
    text = '{"a": [{"a": 1}, {"a": 2}], "A": {"a": 3}}'
    assert json_value(text) == {"a": [{"a": 1}, {"a": 2}], "A": {"a": 3}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (r'{"a": "\u0000"}', "NUL"),
        (r'{"\u0000": 1}', "NUL"),
        (r'["\ud800"]', "surrogate"),
        (r'["\udc00\ud800"]', "surrogate"),
        ("[9007199254740993]", "2.53"),
        ("[-99999999999999999999]", "2.53"),
        ("[" + "9" * 5000 + "]", "does not parse"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "Infinity"),
        ('["\x00"]', "does not parse"),
    ],
)
def test_what_the_database_or_canonical_json_cannot_hold_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        json_value(text)


@pytest.mark.parametrize("value", ["\U0001f600", r"\ud800", "9" * 30, 2**53, -(2**53), 1.5])
def test_what_they_can_hold_is_read(value: Any) -> None:
    assert json_value(json.dumps([value])) == [value]


def test_objects_with_too_many_fields_are_refused_wherever_they_stand() -> None:
    document = {f"k{place}": 1 for place in range(65)}
    for text in (json.dumps(document), json.dumps([{"a": document}])):
        assert json_value(text)
        with pytest.raises(InvalidInput, match="at most 64 fields, got one of 65"):
            json_value(text, most_fields=64)
