"""Numbers and spans of time as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipeline.domain.formats.counting import counted, spoken


def test_a_number_has_the_noun_that_goes_with_it() -> None:
    assert [counted(number, "edit") for number in (0, 1, 1200)] == ["0 edits", "1 edit", "1,200 edits"]


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (timedelta(days=1), "1 day"),
        (timedelta(days=3320, hours=1, minutes=25), "3,320 days 1 hour"),
        (timedelta(days=2, seconds=1), "2 days 1 second"),
        (timedelta(hours=36), "1 day 12 hours"),
        (timedelta(seconds=90), "1 minute 30 seconds"),
        (timedelta(milliseconds=900), "1 second"),
        (timedelta(), "0 seconds"),
        (timedelta(seconds=-5), "0 seconds"),
    ],
)
def test_a_span_is_told_in_its_two_largest_units(span: timedelta, said: str) -> None:
    assert spoken(span) == said
