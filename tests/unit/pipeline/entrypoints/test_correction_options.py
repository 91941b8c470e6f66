"""A correction in the options of `submit`, and what is filled in."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.entrypoints.correction_files import advice, correction_in_options


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
