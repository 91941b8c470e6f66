"""The verdict follows from what was measured and the policy, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from pipeline.domain.gates import GatePolicy, Verdict, bound_text
from pipeline.domain.judging import judge, unmeasured
from pipeline.domain.measurements import Measurements, ModelScore, SameSubjectScore
from tests.support.factories import make_measurements, make_score

POLICY = GatePolicy()


def test_a_candidate_within_every_bound_passes() -> None:
    report = judge(POLICY, make_measurements(make_score("a"), make_score("b")))
    assert report.verdict is Verdict.passed
    assert report.passed
    assert not report.offenders
    assert report.summary == "every metric is within its bound"


def test_an_edit_that_does_not_hold_is_an_offender_with_its_figures() -> None:
    report = judge(POLICY, make_measurements(make_score("a"), make_score("b", edit_success=False, token_fraction=0.5)))
    assert report.verdict is Verdict.failed
    assert report.offenders == {"b"}
    assert "0.50" in next(row.reason for row in report.edits if row.edit_id == "b")


def test_a_neighbour_whose_near_tie_flips_does_not_make_an_offender() -> None:
    report = judge(POLICY, make_measurements(make_score("a", locality=(False, False), locality_kl=0.05)))
    assert report.passed


def test_an_edit_that_moves_its_own_neighbours_is_an_offender() -> None:
    report = judge(POLICY, make_measurements(make_score("a", locality=(False, True), locality_kl=0.9)))
    assert report.offenders == {"a"}


@pytest.mark.parametrize(
    ("metric", "changes"),
    [
        ("locality", {"suite_unchanged": 0.7}),
        ("perplexity", {"perplexity": 22.0}),
        ("retention", {"retention": 0.8, "num_retained": 10}),
    ],
)
def test_a_batch_that_harms_the_model_fails_against_the_parent(metric: str, changes: dict[str, float]) -> None:
    whole = make_measurements(make_score("a"))
    parent = replace(whole.parent, retention=1.0, num_retained=10)
    candidate = replace(parent, **changes)  # type: ignore[arg-type]
    report = judge(POLICY, replace(whole, parent=parent, candidate=candidate))
    failed = [row.metric for row in report.rows if row.verdict is Verdict.failed]
    assert failed == [metric]
    assert not report.passed


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [({"suite_unchanged": 0.7, "perplexity": 22.0}, Verdict.passed), ({"suite_unchanged": 0.4}, Verdict.saturated)],
)
def test_what_brings_an_earlier_ledger_back_is_held_to_floors_and_not_to_the_parent_that_nobody_wants(
    changes: dict[str, float], verdict: Verdict
) -> None:
    whole = make_measurements()
    candidate = replace(whole.parent, **changes)  # type: ignore[arg-type]
    report = judge(POLICY, replace(whole, candidate=candidate, change_norm=9.0), is_undo=True)
    assert report.verdict is verdict
    assert {row.verdict for row in report.rows if row.metric in ("locality", "change_norm")} == {Verdict.reported}


def test_what_was_not_measured_says_so_and_is_not_a_pass() -> None:
    whole = make_measurements(make_score("a"))
    report = judge(POLICY, replace(whole, candidate=replace(whole.candidate, perplexity=None)))
    row = next(row for row in report.rows if row.metric == "perplexity")
    assert row.verdict is Verdict.not_measured
    assert report.verdict is Verdict.failed
    assert "perplexity was not measured" in report.summary


def test_edits_without_rephrases_pass_with_generalization_not_measured() -> None:
    report = judge(POLICY, make_measurements(make_score("a")))
    row = next(row for row in report.rows if row.metric == "generalization")
    assert row.verdict is Verdict.not_measured
    assert report.passed


def test_generalization_is_reported_by_class_and_edit_rows_are_no_part_of_it() -> None:
    score = make_score(
        "a",
        same_context=(True, True, True),
        other_context=(True, False),
        unnamed=(False,),
        row_rephrases=(True,),
        chat_success=False,
    )
    report = judge(POLICY, make_measurements(score, make_score("b", same_context=(False,), chat_success=True)))
    values = {row.metric: row.value for row in report.rows}
    counts = {row.metric: row.num_measured for row in report.rows if row.num_measured is not None}
    assert counts == {
        "generalization": 6,
        "generalization_same_context": 4,
        "generalization_other_context": 2,
        "generalization_unnamed": 1,
        "row_rephrases": 1,
        "chat_success": 2,
        "other_subjects_unchanged": 0,
        "other_subjects_taken": 0,
        "other_subjects_kl": 0,
    }
    assert values["generalization"] == 4 / 6
    assert values["generalization_same_context"] == 3 / 4
    assert values["generalization_other_context"] == 1 / 2
    assert values["generalization_unnamed"] == 0.0
    assert values["row_rephrases"] == 1.0
    assert values["chat_success"] == 1 / 2
    assert report.passed
    assert "4 of 5 rephrases follow, a chat answers otherwise" in report.edits[0].reason


@pytest.mark.parametrize(
    ("bound", "metric"),
    [("other_context_min", "generalization_other_context"), ("chat_success_min", "chat_success")],
)
def test_other_contexts_and_chats_are_judged_only_where_the_policy_has_a_bound(bound: str, metric: str) -> None:
    missed = make_measurements(make_score("a", other_context=(True, False), chat_success=False))
    strict = replace(POLICY, **{"judged_wordings_min": 1, "chat_success_min": 0.0, bound: 0.6})  # type: ignore[arg-type]
    assert judge(POLICY, missed).passed
    report = judge(strict, missed)
    assert [row.metric for row in report.rows if row.verdict is Verdict.failed] == [metric]
    assert judge(strict, make_measurements(make_score("a"))).passed  # what was not measured fails nobody


def test_a_share_of_few_wordings_is_reported_and_judges_nobody_and_of_enough_it_does() -> None:
    def verdict(num: int) -> Verdict:
        report = judge(POLICY, make_measurements(make_score("a", same_context=(False,) * num)))
        return next(row.verdict for row in report.rows if row.metric == "generalization")

    least = POLICY.judged_wordings_min
    assert (verdict(least - 1), verdict(least)) == (Verdict.reported, Verdict.failed)


def test_facts_about_the_subjects_of_a_batch_are_counted_once_and_lost_ones_fail_their_own_edits() -> None:
    def fact(edit_id: str, holds: bool) -> SameSubjectScore:
        return SameSubjectScore(edit_id=edit_id, prompt="asked", holds=holds)

    scores = (
        make_score("a", same_subject=(fact("old", True), fact("gone", False))),
        make_score("b", same_subject=(fact("old", True),)),
        make_score("c"),
    )
    report = judge(POLICY, make_measurements(*scores))
    [row] = [row for row in report.rows if row.metric == "same_subject_lost"]
    assert (row.value, row.num_measured, row.verdict) == (0.5, 2, Verdict.reported)
    assert [edit.edit_id for edit in report.edits if not edit.passed] == ["a"]
    assert judge(replace(POLICY, same_subject_lost_max=0.5), make_measurements(*scores)).passed


def test_policies_from_before_these_bounds_keep_their_digest() -> None:
    known = GatePolicy.from_stored({"generalization_min": 0.0, "edit_success_min": 0.9, "of_a_later_version": 1})
    assert known.digest == "b86ee05083f9950848c2a962d32e5b481880ab3c870b1fdd343d722dcc1ecab9"
    assert replace(known, chat_success_min=0.1).digest != known.digest


def test_bounds_are_told_as_a_minimum_or_a_maximum_in_reports_of_before_too() -> None:
    worse = make_measurements(make_score("a", edit_success=False), kl_from_parent=0.9)
    report = judge(POLICY, worse)
    assert "edit_success 0 (minimum 0.9); locality_kl 0.9 (maximum 0.5); 1 edit fails on its own" in report.summary
    rows = {row.metric: asdict(row) for row in report.rows}
    for metric, bound in {"locality_kl": "maximum 0.5", "locality": "minimum 0.85"}.items():
        assert bound_text(rows[metric]) == bound
        assert bound_text({key: value for key, value in rows[metric].items() if key != "is_most"}) == bound
    assert bound_text({"metric": "generalization", "threshold": 0.0, "num_measured": 2}) == "no bound"


def test_what_the_policy_has_no_bound_for_is_reported_and_does_not_pass_a_bound_of_0() -> None:
    off = replace(POLICY, generalization_min=0.0)
    row = next(r for r in judge(off, make_measurements(make_score("a", same_context=(False,)))).rows if r.num_measured)
    assert (row.metric, row.verdict, row.threshold, row.bound) == ("generalization", Verdict.reported, None, "no bound")


def test_measurements_of_a_stored_report_are_judged_as_they_were() -> None:
    found = make_measurements(make_score("a", other_context=(True, False)), make_score("b", edit_success=False))
    stored = json.loads(json.dumps(asdict(found)))
    stored["edits"][0]["of_a_later_version"] = 1
    del stored["candidate"]["accuracy"]
    assert Measurements.from_stored(stored) == found


def test_a_breached_floor_is_nobodys_fault() -> None:
    whole = make_measurements(make_score("a"))
    worn = replace(whole.candidate, suite_unchanged=0.45)
    report = judge(POLICY, replace(whole, candidate=worn, parent=worn))
    assert report.verdict is Verdict.saturated
    assert not report.offenders


def test_a_removal_without_added_edits_can_pass() -> None:
    assert judge(POLICY, make_measurements()).passed


def test_a_report_without_figures_never_passes() -> None:
    report = unmeasured(POLICY, ["a"], reason="the delta is not finite")
    assert not report.passed
    assert report.offenders == {"a"}


def test_a_candidate_of_which_nothing_was_measured_never_passes() -> None:
    nothing = ModelScore()
    whole = make_measurements(candidate=nothing, parent=nothing, base=nothing, kl_from_parent=None, change_norm=None)
    assert not judge(POLICY, whole).passed


def test_the_policy_digest_changes_with_every_threshold() -> None:
    digests = {replace(POLICY, **{name: 0.123}).digest for name in GatePolicy.__slots__}  # type: ignore[arg-type]
    assert len(digests | {POLICY.digest}) == len(GatePolicy.__slots__) + 1


def of_classifier(accuracy: float | None, *, parent: float = 0.9) -> Measurements:
    """A classifier's candidate, whose base has nine probes of ten right: it has no perplexity."""
    whole = make_measurements(make_score("a"))
    model = replace(whole.candidate, perplexity=None)
    return replace(
        whole,
        candidate=replace(model, accuracy=accuracy),
        parent=replace(model, accuracy=parent),
        base=replace(whole.base, perplexity=None, accuracy=0.9),
    )


def test_a_classifier_is_judged_by_its_accuracy_and_says_that_perplexity_was_not_measured() -> None:
    report = judge(POLICY, of_classifier(0.88))
    verdicts = {row.metric: row.verdict for row in report.rows}
    assert report.passed
    assert verdicts["accuracy"] is verdicts["accuracy_floor"] is Verdict.passed
    assert verdicts["perplexity"] is verdicts["perplexity_ceiling"] is Verdict.not_measured


def test_a_classifier_that_loses_accuracy_fails_against_its_parent_and_is_saturated_against_its_base() -> None:
    lost = judge(POLICY, of_classifier(0.8))
    assert [row.metric for row in lost.rows if row.verdict is Verdict.failed] == ["accuracy"]
    worn = judge(POLICY, of_classifier(0.7, parent=0.7))
    assert worn.verdict is Verdict.saturated
    assert [row.metric for row in worn.rows if row.verdict is Verdict.saturated] == ["accuracy_floor"]


def test_a_classifier_whose_accuracy_was_not_measured_does_not_pass() -> None:
    report = judge(POLICY, of_classifier(None))
    assert not report.passed
    assert "accuracy was not measured" in report.summary


def test_a_language_model_has_no_row_for_accuracy() -> None:
    rows = judge(POLICY, make_measurements(make_score("a"))).rows
    assert not [row for row in rows if row.metric.startswith("accuracy")]
