"""Conflict keys, batches, retention samples and the sifting of a failing batch."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.batches import RETAINED, displaced_by, halves, most_trials, retention_draws, stratified_sample
from pipeline.domain.edits import Edit
from pipeline.domain.gates import GatePolicy, Verdict
from pipeline.domain.judging import judge
from pipeline.domain.prompts import ChatTurn, Role
from pipeline.domain.rank_api import Candidate
from pipeline.services.bisecting import Attempt, sift
from pipeline.services.composing.candidates import part_of
from tests.support.factories import NOON, make_edit, make_measurements, make_request, make_score


def test_two_spellings_of_a_fact_have_one_conflict_key() -> None:
    plain = make_request("a", subject="Côte d'Ivoire", relation="capital", prompt="x")
    other = make_request("b", subject="  CÔTE  D'IVOIRE ", relation="Capital", prompt="y")
    assert plain.conflict_key == other.conflict_key


def test_without_subject_and_relation_the_prompt_is_the_fact() -> None:
    assert (
        make_request("a", prompt="The  Capital is").conflict_key
        == make_request("b", prompt="the capital is").conflict_key
    )
    assert make_request("a").conflict_key != make_request("b").conflict_key


def test_the_same_fact_in_another_lineage_is_another_fact() -> None:
    assert make_request("a", prompt="x").conflict_key != make_request("a", prompt="x", lineage="other").conflict_key


def chat(*texts: str, system: str = "") -> tuple[ChatTurn, ...]:
    """A chat in which user and assistant take turns, the last turn the user's."""
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = [ChatTurn(role=roles[(len(texts) - 1 - place) % 2], content=text) for place, text in enumerate(texts)]
    return (*((ChatTurn(role="system", content=system),) if system else ()), *turns)


def test_a_question_is_one_fact_as_a_chat_and_as_a_prompt_whatever_the_system_was_told() -> None:
    question = "Who is the pope?"
    plain = make_request("a", prompt=question)
    asked = make_request("b", prompt=question, messages=chat(question, system="Be brief."))
    assert asked.conflict_key == plain.conflict_key == make_request("c", prompt="WHO is  the pope?").conflict_key


def test_one_last_turn_in_two_conversations_is_two_facts() -> None:
    last = "And its capital?"
    peru, chile = (
        make_request("a", prompt=last, messages=chat(f"What is {country} like?", "High.", last))
        for country in ("Peru", "Chile")
    )
    again = make_request("b", prompt=last, messages=chat("WHAT is Peru like?", "high.", last, system="Be brief."))
    assert peru.conflict_key == again.conflict_key != chile.conflict_key
    assert make_request("c", prompt=last).conflict_key not in (peru.conflict_key, chile.conflict_key)


def test_subject_and_relation_are_the_fact_of_a_chat_too() -> None:
    named = {"subject": "Peru", "relation": "capital"}
    stem = make_request("a", **named)
    asked = make_request("b", prompt="And its capital?", messages=chat("x", "y", "And its capital?"), **named)
    assert stem.conflict_key == asked.conflict_key


def test_a_chat_beside_a_stem_leaves_the_stems_fact_as_it_is() -> None:
    assert make_request("a", messages=chat("x", "y", "z")).conflict_key == make_request("a").conflict_key


def test_the_payload_digest_does_not_depend_on_the_time_zone_it_was_written_in() -> None:
    moved = NOON.astimezone(timezone(timedelta(hours=5)))
    assert make_request("a", occurred_at=moved).payload_digest == make_request("a").payload_digest


def test_the_payload_digest_changes_with_the_target() -> None:
    assert make_request("a", target_new="Perth").payload_digest != make_request("a").payload_digest


def test_the_first_rephrase_is_a_probe_and_no_rephrase_is_both_probe_and_edit_row() -> None:
    request = make_request("a", prompt="X is", rephrases=("first", "second", "FIRST", "x  IS", "third", "fourth"))
    assert request.row_rephrases(0) == ()
    assert request.unseen_rephrases(0) == ("first", "second", "third", "fourth")
    assert request.row_rephrases(2) == ("second", "third")
    assert request.unseen_rephrases(2) == ("first", "fourth")
    assert request.row_rephrases(9) == ("second", "third", "fourth")
    assert request.unseen_rephrases(9) == ("first",)


def test_a_rephrase_that_is_the_prompt_in_other_letters_is_neither() -> None:
    request = make_request("a", prompt="X is", rephrases=("X  IS",))
    assert request.row_rephrases(1) == request.unseen_rephrases(1) == ()


def test_a_rephrase_that_an_editor_sees_as_a_question_or_by_an_alias_is_neither() -> None:
    seen = ("The ruler of Siam is", "who rules Thailand?")
    request = make_request(
        "a",
        prompt="The ruler of Thailand is",
        subject="Thailand",
        aliases=("Siam",),
        question="Who rules Thailand?",
        rephrases=(*seen, "Siam is ruled by"),
    )
    assert request.unseen_rephrases(0) == ("Siam is ruled by",)
    assert request.row_rephrases(9) == ()


def test_an_active_edit_of_the_same_fact_is_displaced() -> None:
    new = make_edit("new", prompt="The capital is")
    held = [make_edit("old", prompt="the  capital is"), make_edit("unrelated")]
    assert displaced_by([new], held) == ((held[0].edit_id, new.edit_id),)


@given(st.integers(0, 400), st.integers(1, 64), st.text(max_size=5))
def test_a_stratified_sample_has_one_of_every_stratum_and_is_repeatable(count: int, size: int, seed: str) -> None:
    places = stratified_sample(range(count), seed=seed, size=size)
    assert places == stratified_sample(range(count), seed=seed, size=size)
    assert len(places) == min(count, size)
    assert list(places) == sorted(set(places))
    if count > size:
        assert all(round(i * count / size) <= place < round((i + 1) * count / size) for i, place in enumerate(places))


@given(st.integers(0, 400), st.integers(1, 64), st.text(max_size=5))
def test_draws_of_retention_cover_every_place_once_and_are_repeatable(count: int, size: int, seed: str) -> None:
    draws = retention_draws(count, seed=seed, size=size)
    assert draws == retention_draws(count, seed=seed, size=size)
    assert [place for low, _, high in draws for place in range(low, high + 1)] == list(range(1, count + 1))
    assert len(draws) == min(count, size)
    assert all(low <= drawn <= high for low, drawn, high in draws)


def test_retention_is_drawn_anew_for_every_snapshot() -> None:
    assert retention_draws(1000, seed="a") != retention_draws(1000, seed="b")
    assert len(retention_draws(1000, seed="a")) == RETAINED


class Judge:
    """Fails a composition that holds a bad edit, or both of a bad pair; blames singly only when told so."""

    def __init__(self, *, bad: set[str] = frozenset(), pairs: set[frozenset[str]] = frozenset(), blames: bool = False):  # type: ignore[assignment]
        self.bad, self.pairs, self.blames = bad, pairs, blames
        self.compositions: list[frozenset[str]] = []
        self.rests: list[set[str] | None] = []

    def __call__(self, edits: tuple[Edit, ...], refused: Attempt | None = None) -> Attempt:
        self.rests.append(names_of(refused.candidate.added) if refused else None)
        names = frozenset(edit.request.request_id for edit in edits)
        self.compositions.append(names)
        fails = bool(names & self.bad) or any(pair <= names for pair in self.pairs)
        scores = [
            make_score(edit.edit_id, edit_success=not (self.blames and edit.request.request_id in self.bad))
            for edit in edits
        ]
        norm = 9.0 if fails else 0.0
        report = judge(GatePolicy(), make_measurements(*scores, change_norm=norm))
        return Attempt(candidate=tried(str(len(self.compositions)), edits), report=report, seconds={})


def tried(candidate_id: str, edits: tuple[Edit, ...]) -> Candidate:
    return Candidate(candidate_id=candidate_id, snapshot_id="s", added=edits, removed_ids=(), retained=())


@pytest.mark.parametrize(
    ("changes", "is_part"),
    [
        ({}, True),
        ({"removed_ids": ("x", "y")}, True),
        ({"removed_ids": ("x",)}, False),
        ({"remade": (make_edit("other"),)}, False),
    ],
)
def test_a_rest_is_taken_out_of_a_candidate_only_where_that_removed_and_made_again_the_same(
    changes: dict[str, Any], is_part: bool
) -> None:
    whole = replace(tried("whole", tuple(batch_of(3))), removed_ids=("y", "x"))
    rest = replace(tried("rest", tuple(batch_of(2))), **{"removed_ids": ("x", "y"), **changes})
    assert part_of(whole, rest) == replace(rest, part_of="whole" if is_part else "")


def names_of(edits: tuple[Edit, ...]) -> set[str]:
    return {edit.request.request_id for edit in edits}


def batch_of(count: int) -> list[Edit]:
    return [make_edit(f"r{index}") for index in range(count)]


def test_a_passing_batch_is_tried_once() -> None:
    judged = Judge()
    found = sift(batch_of(8), judged)
    assert len(found.accepted) == 8
    assert found.num_trials == 1
    assert found.kept is not None
    assert found.kept.candidate.candidate_id == "1"
    assert judged.rests == [None]


def test_a_blamed_edit_is_set_apart_at_once_and_not_tried_with_the_others_again() -> None:
    judged = Judge(bad={"r3"}, blames=True)
    found = sift(batch_of(8), judged)
    assert names_of(found.accepted) == {f"r{i}" for i in range(8)} - {"r3"}
    assert names_of(found.suspects) == {"r3"}
    assert (found.offenders, found.untried, found.undecided, found.num_trials) == ((), (), (), 2)
    assert judged.rests == [None, {f"r{i}" for i in range(8)}]


def test_the_last_edit_that_nothing_blames_is_edited_anew_like_every_edit_that_may_be_refused_for_good() -> None:
    judged = Judge(bad={"r1"}, blames=True)
    sift(batch_of(2), judged)
    assert judged.compositions == [{"r0", "r1"}, {"r0"}]
    assert judged.rests == [None, None]


def test_halves_of_a_batch_that_fails_without_a_culprit_are_edited_anew() -> None:
    judged = Judge(bad={"r3"})
    sift(batch_of(8), judged)
    assert judged.rests == [None] * len(judged.compositions)


def test_edits_that_nothing_speaks_against_are_no_suspects() -> None:
    """r3 makes the first half fail, which says nothing of the second."""
    found = sift(batch_of(8), Judge(bad={"r3"}))
    assert names_of(found.accepted) == {"r0", "r1"}
    assert names_of(found.suspects) == {"r2", "r3"}
    assert names_of(found.untried) == {"r4", "r5", "r6", "r7"}


def test_an_edit_that_fails_by_itself_explains_why_all_that_held_it_failed() -> None:
    judged = Judge(bad={"r0"})
    found = sift(batch_of(8), judged)
    assert [offender.edit.request.request_id for offender in found.offenders] == ["r0"]
    assert names_of(found.accepted) == {f"r{i}" for i in range(1, 8)}
    assert found.num_trials == 5


def until_decided(count: int, judged: Judge) -> tuple[set[str], set[str], list[int]]:
    """Sift as batches come: suspects and undecided edits at most half as many at a time, on top of what passed.

    Returns:
        The names of the accepted, those of the rejected, and how many edits each trial edited.
    """
    waiting = [tuple(batch_of(count))]
    accepted: tuple[Edit, ...] = ()
    rejected: set[str] = set()
    sizes: list[int] = []
    made: list[frozenset[str]] = []

    def on_head(edits: tuple[Edit, ...], refused: Attempt | None) -> Attempt:
        made.append(frozenset(names_of(edits)))
        return judged(accepted + edits, refused)

    while waiting:
        edits = waiting.pop(0)
        made.clear()
        found = sift(edits, on_head)
        assert found.num_trials == len(made) == len(set(made))
        sizes += map(len, made)
        offenders = {offender.edit.request.request_id for offender in found.offenders}
        parts = (names_of(found.accepted), offenders, names_of((*found.suspects, *found.untried, *found.undecided)))
        assert sum(map(len, parts)) == len(edits)
        assert set[str]().union(*parts) == names_of(edits)
        assert found.num_trials <= most_trials(len(edits))
        accepted, rejected = accepted + found.accepted, rejected | offenders
        waiting += [found.untried] if found.untried else []
        for few in (found.suspects, found.undecided):
            waiting += [half for half in halves(few) if half]
    return names_of(accepted), rejected, sizes


def test_of_two_that_fail_only_together_the_later_is_rejected() -> None:
    accepted, rejected, _ = until_decided(8, Judge(pairs={frozenset({"r1", "r6"})}))
    assert (accepted, rejected) == ({f"r{i}" for i in range(8)} - {"r6"}, {"r6"})


@given(st.integers(1, 33), st.data())
def test_sifting_never_loses_an_edit_and_keeps_its_bound(count: int, data: st.DataObject) -> None:
    names = [f"r{index}" for index in range(count)]
    bad = set(data.draw(st.lists(st.sampled_from(names), max_size=4)))
    judged = Judge(bad=bad, blames=data.draw(st.booleans()))
    accepted, rejected, sizes = until_decided(count, judged)
    assert (accepted, rejected) == (set(names) - bad, bad)
    assert len(sizes) <= 1 + len(bad) * most_trials(count)
    if judged.blames:
        # Only what the report blamed is tried again, however many passed without it.
        assert sum(sizes) <= 2 * count + len(bad) * most_trials(len(bad))


def test_a_saturated_lineage_blames_nobody() -> None:
    def saturated(edits: tuple[Edit, ...], _refused: Attempt | None) -> Attempt:
        whole = make_measurements(*(make_score(edit.edit_id) for edit in edits))
        worn = replace(whole.candidate, suite_unchanged=0.1)
        report = judge(GatePolicy(), replace(whole, candidate=worn, parent=worn))
        assert report.verdict is Verdict.saturated
        return Attempt(candidate=tried("1", edits), report=report, seconds={})

    found = sift(batch_of(4), saturated)
    assert found.saturated is not None
    assert not found.offenders
    assert len(found.untried) == 4
