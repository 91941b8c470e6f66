"""When a free answer confirms a target, and when it is known to."""

from __future__ import annotations

import pytest

from editors.measure.answers import confirms, is_settled


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Paris", "Paris"),
        (" paris.", "Paris"),
        ("Paris, the capital of France", "Paris"),
        ("Paris in the north", "Paris"),
        ('"Paris" is what', "Paris"),
        ("New\u00a0York.\n\nNew York is", "New York"),
        ("actor and director", "actor"),
        ("STRASSE.", "straße"),
        ("Lip-Bu Tan, who", "Lip-Bu Tan"),
        ("Leo XIV", "Leo XIV"),
        ("Paris\nLondon", "Paris"),
        ("Sega's new console", "Sega"),
    ],
)
def test_the_target_at_a_word_boundary_is_confirmed(answer: str, target: str) -> None:
    assert confirms(answer, target)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Parisian", "Paris"),
        ("Gitegaum.", "Gitega"),
        ("New York University", "New York"),
        ("Paris or Rome", "Paris"),
        ("Paris and London", "Paris"),
        ("Paris/London", "Paris"),
        ("Jean-Luc", "Jean"),
        ("X10, which", "X"),
        ("Apollo 11", "Apollo"),
        ("the city of Paris", "Paris"),
        ("", "Paris"),
        ("Par", "Paris"),
    ],
)
def test_another_answer_is_not_confirmed(answer: str, target: str) -> None:
    assert not confirms(answer, target)


@pytest.mark.parametrize(
    ("answer", "is_known"),
    [
        ("", False),
        ("Pa", False),
        ("Paris", False),
        ("Paris ", False),
        ("Paris,", True),
        ("Paris\n", True),
        ("Paris is the capital", True),
        ("Rome", True),
        ("Parking", True),
    ],
)
def test_an_answer_is_settled_once_more_text_cannot_change_it(answer: str, is_known: bool) -> None:
    assert is_settled(answer, "Paris") is is_known


@pytest.mark.parametrize(
    "whole", ["Paris, France", "Parisian way", "Paris University of", "Rome is", "Paris or Rome of", "Paris is fine so"]
)
def test_a_settled_answer_keeps_its_verdict(whole: str) -> None:
    verdicts = [confirms(whole[:end], "Paris") for end in range(len(whole) + 1) if is_settled(whole[:end], "Paris")]
    assert verdicts
    assert set(verdicts) == {confirms(whole, "Paris")}
