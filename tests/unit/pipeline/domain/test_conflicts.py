"""Which of several corrections of one fact holds."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.conflicts import Claimant, superseded
from tests.support.factories import NOON


def claimant(number: int, *, fact: str = "France", target: str = "Lyon", minute: int = 0) -> Claimant:
    """The correction at an offset."""
    return Claimant(
        edit_id=f"edit-{number}",
        request_id=f"request-{number}",
        prompt=f"The capital of {fact} is",
        conflict_key=fact,
        target_new=target,
        occurred_at=NOON + timedelta(minutes=minute),
        origin=("requests", 0, number),
    )


CORRECTIONS = st.lists(
    st.tuples(st.sampled_from(["France", "Japan"]), st.sampled_from(["Lyon", "Nice"]), st.integers(0, 3)), max_size=8
).map(lambda rows: [claimant(n, fact=f, target=t, minute=m) for n, (f, t, m) in enumerate(rows)])


def test_the_later_one_wins_and_the_reason_names_it() -> None:
    (loser,) = superseded([claimant(1, minute=2), claimant(2, target="Nice", minute=1)], [])
    assert (loser.edit_id, loser.superseded_by) == ("edit-2", "edit-1")
    assert loser.reason == "older than request-1, 'The capital of France is', which corrects the same fact"


@pytest.mark.parametrize(
    ("first", "second"), [("Lyon", "Lyon"), (" Lyon", "Lyon\n"), ("Orl\u00e9ans", "Orle\u0301ans")]
)
def test_the_same_target_is_a_duplicate_whatever_its_blanks_and_unicode_form(first: str, second: str) -> None:
    (loser,) = superseded([claimant(1, target=first), claimant(2, target=second)], [])
    assert loser.reason == "duplicate of request-2, 'The capital of France is'"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Iphone", "iPhone"),
        ("LYON", "Lyon"),
        ("CO2", "CO\u2082"),
        ("10\u2079", "109"),
        ("Masse", "Ma\u00dfe"),
        ("\uff11\uff12", "12"),
        ("of\ufb01ce", "office"),
        ("Istanbul", "\u0130stanbul"),
        ("New  York", "New York"),
        ("\u0645\u062d\u0640\u0645\u062f", "\u0645\u062d\u0645\u062f"),
    ],
)
def test_a_correction_of_the_spelling_alone_is_a_correction(old: str, new: str) -> None:
    held = claimant(1, target=old)
    assert superseded([claimant(2, target=new)], [held]) == ()
    (loser,) = superseded([held, claimant(2, target=new)], [])
    assert loser.reason.startswith("older than request-2")


def test_of_two_that_are_held_under_one_key_the_later_one_counts() -> None:
    held = [claimant(2, target="Nice", minute=2), claimant(1, target="Lyon", minute=1)]
    (loser,) = superseded([claimant(3, target="Nice", minute=3)], held)
    assert loser.superseded_by == "edit-2"


def test_what_is_active_wins_over_anything_older() -> None:
    losers = superseded([claimant(1, minute=1), claimant(2, minute=2)], [claimant(0, target="Nice", minute=3)])
    assert {loser.superseded_by for loser in losers} == {"edit-0"}


@given(waiting=CORRECTIONS, active=CORRECTIONS)
def test_at_most_one_of_each_fact_is_left_and_it_is_newer_than_what_is_active(
    waiting: list[Claimant], active: list[Claimant]
) -> None:
    held = {one.conflict_key: one for one in active}
    losers = superseded(waiting, list(held.values()))
    gone = {loser.edit_id for loser in losers}
    left = [one for one in waiting if one.edit_id not in gone]
    assert len(gone) == len(losers)
    assert len({one.conflict_key for one in left}) == len(left)
    for one in left:
        rivals = [other for other in waiting if other.conflict_key == one.conflict_key]
        assert one.place == max(other.place for other in rivals)
        against = held.get(one.conflict_key)
        assert against is None or (one.place >= against.place and not one.asks_the_same(against))


@given(waiting=CORRECTIONS)
def test_the_order_of_arrival_changes_nothing(waiting: list[Claimant]) -> None:
    assert set(superseded(waiting, [])) == set(superseded(waiting[::-1], []))
