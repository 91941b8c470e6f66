"""The demo's tables show a few facts and count all of them, base beside champion."""

from __future__ import annotations

import pytest

from pipeline.entrypoints.demo.asking import Asked, Way, asked_about
from pipeline.entrypoints.demo.tables import MAX_ANSWER_CHARS, NUM_SHOWN, first_line, shown, tell_before_and_after
from tests.support.factories import make_request

NUM_FACTS = 15


def questions() -> list[Asked]:
    """Every way in which some facts are asked for, and the stem of one that is asked in no other way."""
    names = [f"Land{number}" for number in range(NUM_FACTS)]
    full = [
        make_request(name, subject=name, rephrases=(f"In {name} the seat is",), question=f"Where is {name}'s seat?")
        for name in names
    ]
    return asked_about([*full, make_request("bare")])


def test_each_table_shows_the_same_few_facts_and_says_how_many_of_all_are_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = questions()
    before = {one: "nowhere" for one in asked}
    after = {one: "Canberra" if one.way is Way.stem else "nowhere" for one in asked}
    tell_before_and_after(before | {one: "Canberra" for one in asked if one.way is Way.chat}, after)
    said = capsys.readouterr().out
    assert f"right: 0 of {NUM_FACTS + 1} by the base, {NUM_FACTS + 1} of {NUM_FACTS + 1} by the champion" in said
    assert f"right: 0 of {NUM_FACTS} by the base, 0 of {NUM_FACTS} by the champion" in said
    assert f"right: {NUM_FACTS} of {NUM_FACTS} by the base, 0 of {NUM_FACTS} by the champion" in said
    assert said.count("In Land") == said.count("Where is Land") == NUM_SHOWN


def test_what_is_shown_of_one_way_is_about_the_same_facts_as_of_another() -> None:
    facts = [[one.request.request_id for one in shown(questions(), way)] for way in Way]
    assert len(facts[0]) == NUM_SHOWN
    assert facts[0] == facts[1] == facts[2]


def test_nothing_is_shown_where_nothing_was_asked() -> None:
    assert shown([], Way.stem) == []


@pytest.mark.parametrize(
    ("said", "line"), [(" Bern.\nMore", "Bern."), ("  \n", "(nothing)"), ("a" * 100, "a" * 43 + "…")]
)
def test_an_answer_is_its_first_line_cut_where_it_runs_on(said: str, line: str) -> None:
    [stem] = asked_about([make_request()])
    assert first_line(stem, {stem: said}) == line
    assert len(line) <= MAX_ANSWER_CHARS[Way.stem]
