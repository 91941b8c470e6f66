"""A correction in the options of `submit`, and what is filled in."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.entrypoints.correction_files import correction_in_options


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
