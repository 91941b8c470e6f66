"""What a submitter is told: what the model answers now, and what can be done about it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.domain.edits import EditRequest, Probe
from pipeline.domain.gates import GatePolicy
from pipeline.domain.judging import judge, unmeasured
from pipeline.domain.measurements import OtherSubjectScore, SameSubjectScore
from pipeline.domain.prompts import ChatTurn
from pipeline.domain.reasons import MAX_QUOTED, praise, quoted, refusal, refusal_by_report
from tests.support.factories import make_measurements, make_request, make_score

POLICY = GatePolicy()
ASKED = make_request("France", target_new="Paris", locality=(Probe(prompt="The capital of Italy is"),))
REWORD = "; send it again with another wording of the prompt, or with more rephrases"


def refused(request: EditRequest = ASKED, policy: GatePolicy = POLICY, **score: Any) -> str:
    """The reason of one edit that was tried alone."""
    report = judge(policy, make_measurements(make_score("a", **score)), requests={"a": request})
    assert not report.passed
    return refusal_by_report(report, "a", request)


def other_of(**changes: Any) -> OtherSubjectScore:
    fields: dict[str, Any] = {
        "subject": "Italy",
        "source": "list",
        "prompt": "The capital of Italy is",
        "before": "Rome",
    }
    fields |= {"after": "Paris", "kl": 2.0, "is_unchanged": False, "takes_answer": True}
    return OtherSubjectScore(**fields | changes)


def facts(*held: bool) -> tuple[SameSubjectScore, ...]:
    return tuple(
        SameSubjectScore(edit_id=f"e{i}", request_id=f"f{i}", prompt=f"asked {i}", holds=one)
        for i, one in enumerate(held)
    )


def test_an_edit_that_would_lose_a_fact_about_its_subject_is_refused_and_names_it() -> None:
    told = refused(same_subject=facts(True, False, True))
    assert told == (
        "1 of 3 active facts about its subject would be lost, f1 (maximum 0 of them); 'asked 1' is answered otherwise; "
        "send it again with another wording of the prompt, or after that fact has been reverted"
    )


def test_facts_about_the_subject_that_hold_are_told_and_a_policy_may_allow_a_loss() -> None:
    lost = make_score("a", same_subject=facts(True, False))
    assert refusal(GatePolicy(same_subject_lost_max=0.5), lost, ASKED) is None
    assert refusal(GatePolicy(same_subject_lost_max=None), lost, ASKED) is None
    assert "1 of 2 active facts about its subject would be lost, f1" in praise(lost)
    assert "1 active fact about its subject holds" in praise(make_score("a", same_subject=facts(True)))
    assert "2 active facts about its subject hold" in praise(make_score("a", same_subject=facts(True, True)))


def test_an_edit_that_does_not_hold_tells_the_answer_what_was_asked_and_what_was_wanted() -> None:
    told = refused(edit_success=False, token_fraction=0.5, generated="Lyon")
    answered = "after the edit the model answers 'Lyon' to 'The capital of France is' (wanted 'Paris')"
    assert told == f"{answered}, 0.50 of the target's tokens are the most probable ones{REWORD}"


def test_an_edit_that_is_not_said_freely_tells_the_answer_too() -> None:
    told = refused(free_success=False, generated="")
    answered = "after the edit the model answers nothing to 'The capital of France is' (wanted 'Paris')"
    assert told == f"{answered}: free_success 0 (minimum 0.5){REWORD}"


def test_a_chat_is_told_by_its_last_turn_and_the_reply() -> None:
    turns = (ChatTurn(role="user", content="And its capital?"),)
    chat = make_request("France", prompt="And its capital?", messages=turns, target_new="Paris")
    assert "answers 'Lyon' to 'And its capital?' (wanted 'Paris')" in refused(
        chat, edit_success=False, generated="Lyon"
    )
    strict = GatePolicy(chat_success_min=0.5, judged_wordings_min=1)
    told = refused(chat, strict, chat_success=False, reply="It is Lyon.")
    assert (
        told == f"in a chat the model replies 'It is Lyon.' to 'And its capital?': chat_success 0 (minimum 0.5){REWORD}"
    )


def test_other_wordings_that_do_not_follow_are_told_with_one_of_them() -> None:
    strict, asked = (
        GatePolicy(generalization_min=0.5, judged_wordings_min=1),
        make_request("France", rephrases=("France's capital is",)),
    )
    told = refused(asked, strict, same_context=(False,))
    wordings = "other wordings do not follow, as after 'France's capital is'"
    assert told == f"{wordings}: generalization 0 (minimum 0.5){REWORD}"


def test_neighbours_that_moved_are_told_with_one_that_is_answered_otherwise() -> None:
    told = refused(locality=(False,), locality_kl=6.14)
    moved = "its neighbours moved by 6.14 nats (maximum 0.50): 'The capital of Italy is' is answered otherwise"
    assert told.startswith(f"{moved}; send it again with a prompt that is about this subject alone")


def test_a_model_that_moved_as_a_whole_is_told_with_every_figure() -> None:
    report = judge(POLICY, make_measurements(make_score("a"), kl_from_parent=0.7, change_norm=0.5))
    told = refusal_by_report(report, "a", ASKED)
    assert "moved too far: locality_kl 0.7 (maximum 0.5)" in told
    assert "change_norm 0.5 (maximum 0.2)" in told
    assert told.count("send it again") == 1


def test_what_could_not_be_measured_keeps_its_reason() -> None:
    report = unmeasured(POLICY, ["a"], reason="the delta is not finite")
    assert refusal_by_report(report, "a", ASKED) == "the delta is not finite"


def test_other_subjects_that_moved_are_told_of_an_edit_that_passes() -> None:
    score = make_score("a", other_subjects=(other_of(), other_of(subject="Spain", is_unchanged=True, kl=0.0)))
    moved = "'Italy' took over the answer: 'The capital of Italy is' was 'Rome', is 'Paris'"
    assert f"1 of 2 other subjects answered otherwise, {moved}" in praise(score)
    calm = make_score("a", other_subjects=(other_of(is_unchanged=True),))
    assert "1 other subject answered as before" in praise(calm)


@pytest.mark.parametrize(
    "text", ["x" * 5000, "巴" * 5000, "e\u0301" * 5000, "प्र" * 5000, "👩\u200d🔬" * 5000, "a\n\n b \t" * 999]
)
def test_a_quotation_is_one_line_of_a_bounded_length_and_never_ends_within_a_character(text: str) -> None:
    found = quoted(text)
    assert len(found) <= MAX_QUOTED + 2
    assert "\n" not in found
    assert found.endswith("…'")
    assert found[-3] != "\u200d"


def test_a_reason_has_a_bounded_length_whatever_a_stranger_sent() -> None:
    long = make_request("France", prompt="p" * 9000, target_new="t" * 9000)
    assert len(refused(long, edit_success=False, generated="g" * 9000)) < 600


def test_nothing_is_quoted_where_the_request_is_not_known() -> None:
    assert refusal(POLICY, make_score("a"), None) is None
    told = refusal(POLICY, make_score("a", edit_success=False, generated="Lyon"), None)
    assert told is not None
    assert told.startswith("after the edit the model answers 'Lyon', 1.00 of")
