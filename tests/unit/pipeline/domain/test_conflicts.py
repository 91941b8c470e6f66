"""Which of several corrections of one fact holds."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.conflicts import Claimant, superseded
from tests.support.factories import NOON


def claimant(number: int, *, fact: str = "France", target: str = "Lyon", minute: int = 0) -> Claimant:
    """The correction at an offset."""
    return Claimant(
        edit_id=f"edit-{number}",
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
    assert loser.reason == "older than edit-1, which corrects the same fact"


def test_the_same_target_in_another_spelling_is_a_duplicate() -> None:
    (loser,) = superseded([claimant(1, target=" LYON"), claimant(2, target="lyon")], [])
    assert loser.reason == "duplicate of edit-2"


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
