"""A correction in the options of `submit`, and what is filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.domain.errors import InvalidInput
from pipeline.entrypoints.correction_files import advice, correction_in_options, corrections_in


@pytest.mark.parametrize(
    ("fields", "subject"),
    [
        ({"prompt": "The head coach of FC Barcelona is", "target_new": "Hansi Flick"}, "FC Barcelona"),
        ({"prompt": "The head coach of FC Barcelona is", "target_new": "x", "subject": "Barcelona"}, "Barcelona"),
        ({"messages": [{"role": "user", "content": "Who leads France?"}], "answer": "It is x."}, "France"),
        ({"prompt": "France was once called", "target_new": "France"}, None),
        ({"prompt": "the answer is", "target_new": "x"}, None),
    ],
)
def test_the_subject_is_the_name_in_the_prompt_unless_one_is_given(fields: dict[str, Any], subject: str | None) -> None:
    assert correction_in_options(fields, "cli:ann").document.get("subject") == subject


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "The capital of Peru is", "subject": "Peru", "rephrases": ["Peru is governed from"]}, []),
        ({"prompt": "The capital of Peru is"}, ["it is about Peru"]),
        ({"prompt": "the answer is"}, ["no subject was given"]),
        ({"prompt": "What is the capital of Peru?", "subject": "Peru"}, ["the prompt is a question"]),
        ({"prompt": "ما هي عاصمة بيرو؟", "subject": "بيرو"}, ["the prompt is a question"]),
        (
            {"prompt": "The capital of Peru is", "subject": "Peru", "rephrases": ["The Peruvian seat is"]},
            ["'The Peruvian seat is' does not name Peru"],
        ),
    ],
)
def test_somebody_who_writes_a_correction_by_hand_is_told_what_helps_it_to_hold(
    fields: dict[str, Any], told: list[str]
) -> None:
    sentences = advice(correction_in_options(fields | {"target_new": "Lima"}, "cli:ann"))
    assert [sentence.startswith(start) for sentence, start in zip(sentences, told, strict=True)] == [True] * len(told)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "A is", "target_new": "B"}\n'.encode("utf-16"), "text in UTF-16"),
        ('{"prompt": "A is", "target_new": "B"}\n'.encode("utf-16-le"), "text in UTF-16"),
        (b'[{\n "prompt": "A is",\n "target_new": "B"\n}]\n', "one JSON document over several lines"),
        (b"prompt,target_new\nA is,B\n", "with none: line 1, expected JSON"),
        ('{"prompt": "Der Bürgermeister"}'.encode("latin-1"), "with none: line 1, expected text in UTF-8"),
        (b"[" * 100_000, "with none: line 1, expected JSON, got lists or objects that are nested too deeply"),
    ],
)
def test_a_file_that_holds_no_line_of_json_is_told_for_what_it_is(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "corrections.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=said):
        corrections_in(file, "cli:ann", is_named=False)
