"""Who has to approve, and up to which risk nobody has to."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from pipeline.domain.errors import InvalidInput
from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.review.approvals import AUTOMATIC, Approval, Channel, Decision, Standing, is_last_needed, refusal
from pipeline.domain.review.policies import (
    NAMED,
    ApprovalPolicy,
    ApprovalRule,
    Risk,
    RiskLimit,
    changed_policy,
    named,
    policy_of,
    risk_of,
)

APPROVAL = Approval(
    lineage="facts",
    snapshot_id="s2",
    snapshot_digest="d2",
    champion_seen="s1",
    decision=Decision.approved,
    actor="reviewer:ada",
    is_claimed=False,
    reason="",
    channel=Channel.cli,
)
STANDING = Standing(
    digest="d2",
    status=SnapshotStatus.candidate,
    seq=2,
    gate_passed=True,
    policy_digest="p",
    lineage_policy_digest="p",
    champion_id="s1",
    champion_seq=1,
    is_under_approved=False,
)
LOW = Risk(num_edits=1, worst_locality=1.0, quality_loss=0.0)


@pytest.mark.parametrize("name", NAMED)
def test_a_policy_is_read_back_as_it_was_stored(name: str) -> None:
    policy = named(name)
    assert policy_of(asdict(policy), policy.rule) == policy
    assert policy.words().endswith(".")


def test_a_rule_of_before_is_a_policy_and_one_that_was_changed_alone_counts() -> None:
    assert policy_of(None, "four_eyes") == ApprovalPolicy(requires_known_actor=True, not_own=True)
    assert policy_of(asdict(ApprovalPolicy(requires_reason=True)), "authenticated").rule is ApprovalRule.authenticated


@pytest.mark.parametrize(
    "fields",
    [
        {"approvers": -1},
        {"approvers": 6},
        {"approvers": 2},
        {"not_own": True},
        {"approvers": 0, "automatic_below": RiskLimit()},
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        ApprovalPolicy(**fields)  # type: ignore[arg-type]
    for bad in ({"max_edits": 0}, {"min_locality": 1.1}, {"max_quality_loss": -0.1}):
        with pytest.raises(InvalidInput, match="expected a limit"):
            RiskLimit(**bad)
    with pytest.raises(InvalidInput, match="one of anyone"):
        named("nobody")


def test_a_named_policy_is_changed_field_by_field() -> None:
    told = {"approvers": None, "requires_reason": True}
    assert changed_policy(named("authenticated"), demands=told, limits={"max_edits": None}) == ApprovalPolicy(
        requires_known_actor=True, requires_reason=True
    )
    limited = changed_policy(named("anyone"), demands={}, limits={"max_edits": 3}).automatic_below
    assert limited == RiskLimit(max_edits=3)
    with pytest.raises(InvalidInput, match="approvers log in"):
        changed_policy(named("anyone"), demands={"approvers": 2}, limits={})


def test_a_reason_is_asked_for_whatever_is_decided_and_blanks_are_none() -> None:
    standing = replace(STANDING, policy=ApprovalPolicy(requires_reason=True))
    for decision in (Decision.approved, Decision.rejected):
        refused = refusal(replace(APPROVAL, decision=decision, reason="  "), standing)
        assert refused is not None
        assert "give a reason" in refused
        assert refusal(replace(APPROVAL, decision=decision, reason="checked"), standing) is None


@pytest.mark.parametrize("actor", ["mlflow:unknown (claimed)", "cli:ada (claimed)"])
def test_a_name_that_is_only_claimed_does_not_decide_where_people_log_in(actor: str) -> None:
    claimed = replace(APPROVAL, actor=actor, is_claimed=True)
    assert refusal(claimed, STANDING) is None
    refused = refusal(claimed, replace(STANDING, policy=named("authenticated")))
    assert refused is not None
    assert actor in refused


def test_the_second_person_makes_it_live_and_the_first_one_again_does_not() -> None:
    standing = replace(STANDING, policy=ApprovalPolicy(approvers=2, requires_known_actor=True))
    assert not is_last_needed(APPROVAL, standing)
    endorsed = replace(standing, endorsers=("mlflow-user:ADA",))
    assert not is_last_needed(APPROVAL, endorsed)
    assert is_last_needed(replace(APPROVAL, actor="reviewer:bob"), endorsed)


@pytest.mark.parametrize(
    ("risk", "word"),
    [
        (LOW, None),
        (replace(LOW, num_edits=6), "6 edits"),
        (replace(LOW, worst_locality=0.89), "locality is 0.89"),
        (replace(LOW, quality_loss=0.03), "quality falls by 0.03"),
        (replace(LOW, worst_locality=None), "not measured"),
        (replace(LOW, quality_loss=None), "not measured"),
        (None, "not known"),
    ],
)
def test_without_a_person_only_low_risk_goes_live(risk: Risk | None, word: str | None) -> None:
    automatic = replace(APPROVAL, actor=AUTOMATIC, channel=Channel.policy)
    found = refusal(automatic, replace(STANDING, policy=named("low_risk"), risk=risk))
    assert (found is None) == (word is None)
    assert (word or "") in (found or "")


def test_no_policy_lets_pass_what_its_gates_did_not_or_rejects_by_itself() -> None:
    automatic = replace(APPROVAL, actor=AUTOMATIC, channel=Channel.policy)
    gates_only = replace(STANDING, policy=named("gates_only"))
    assert refusal(automatic, gates_only) is None
    assert refusal(automatic, STANDING) is not None
    assert refusal(automatic, replace(gates_only, gate_passed=False)) is not None
    assert refusal(replace(automatic, decision=Decision.rejected), gates_only) is not None
    assert is_last_needed(automatic, gates_only)


def test_the_risk_is_that_of_all_that_goes_live_together() -> None:
    def report(before: float, after: float, suite: float | None, *own: list[bool]) -> dict[str, object]:
        edits = [{"locality": flags} for flags in own]
        candidate = {"perplexity": after, "suite_unchanged": suite}
        return {"measurements": {"edits": edits, "candidate": candidate, "parent": {"perplexity": before}}}

    found = risk_of([report(10, 11, 0.97, [True, False], []), report(11, 12, 0.99)], num_edits=3)
    assert (found.num_edits, found.worst_locality) == (3, 0.5)
    assert found.quality_loss == pytest.approx(0.2)
    live = risk_of([report(10, 11, 0.97)], num_edits=1, champion=report(7, 8, 0.9))
    assert live.quality_loss == pytest.approx(11 / 8 - 1)
    assert risk_of([report(10, 11, 0.97)], num_edits=1, champion={}).quality_loss == pytest.approx(0.1)
    assert risk_of([report(10, 10, None)], num_edits=1).worst_locality is None
    assert (
        risk_of([{}], num_edits=1)
        == risk_of([], num_edits=1)
        == Risk(num_edits=1, worst_locality=None, quality_loss=None)
    )
    classified = {"candidate": {"accuracy": 0.7, "suite_unchanged": 1.0}, "parent": {"accuracy": 0.9}}
    assert risk_of([{"measurements": classified}], num_edits=1).quality_loss == pytest.approx(0.2)
