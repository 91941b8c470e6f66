"""Policies of approval on the real database: two people, nobody, nobody below a risk, whoever races."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import pytest
from sqlalchemy import text

from pipeline.adapters.logins import Login
from pipeline.adapters.people import add_person, as_reviewer
from pipeline.adapters.sql.database.engine import connect, transaction
from pipeline.adapters.sql.review import SqlReviewStore
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import Misconfigured
from pipeline.domain.judging import judge
from pipeline.domain.ledger.upkeep import Resolving
from pipeline.domain.review.approvals import AUTOMATIC, Decision, Outcome
from pipeline.domain.review.people import Role
from pipeline.domain.review.policies import ApprovalPolicy, RiskLimit, named
from pipeline.domain.snapshots import Snapshot
from tests.support.factories import make_measurements, make_request
from tests.support.store_rig import LINEAGE, POLICY, StoreRig

APPROVED = Decision.approved
TWO = ApprovalPolicy(approvers=2, requires_known_actor=True)


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    made = StoreRig(url=postgres_url, folder=tmp_path)
    made.new_lineage()
    yield made
    made.close()


@pytest.fixture
def people(rig: StoreRig) -> Iterator[dict[str, SqlReviewStore]]:
    """Two reviewers who logged in, each with a connection of their own."""
    names = [f"{stem}_{uuid4().hex[:12]}" for stem in ("ada", "bob")]
    engines = {
        name: connect(as_reviewer(rig.url, add_person(rig.url, name, [Role.reviewer], actor="test")), "")
        for name in names
    }
    yield {name: SqlReviewStore(engine) for name, engine in engines.items()}
    for engine in engines.values():
        engine.dispose()


@pytest.fixture
def control(rig: StoreRig) -> SqlReviewStore:
    return SqlReviewStore(rig.engines[Login.control])


def snapshot_of(rig: StoreRig, *requests: str, submitted_by: str = "agent") -> Snapshot:
    rig.submit(*(make_request(one, prompt=f"The capital of {one} is", submitted_by=submitted_by) for one in requests))
    return rig.commit_batch(rig.acquire())


def approve(rig: StoreRig, people: dict[str, SqlReviewStore], name: str, made: Snapshot) -> Outcome:
    return people[name].decide(rig.asked(made, APPROVED, actor=f"reviewer:{name}", is_claimed=False, reason="read"))


def lines(rig: StoreRig, action: AuditAction) -> list[dict[str, object]]:
    return [json.loads(event.payload) for event in rig.audit.events(LINEAGE, limit=1_000) if event.action == action]


def test_the_first_of_two_approvals_is_kept_and_the_second_makes_it_live(
    rig: StoreRig, people: dict[str, SqlReviewStore]
) -> None:
    ada, bob = people
    rig.lineages.set_approval_policy(LINEAGE, TWO, actor="test")
    made = snapshot_of(rig, "r1")
    first = approve(rig, people, ada, made)
    assert (first.awaits_others, first.awaited) == (True, "1 of 2 approvals; one more person has to approve it")
    assert approve(rig, people, ada, made).awaits_others  # the same person twice is one
    assert rig.lineage().champion_id is None
    [endorsed] = lines(rig, AuditAction.snapshot_endorsed)
    assert (endorsed["num_approvals"], endorsed["num_needed"], endorsed["reason"]) == (1, 2, "read")
    second = approve(rig, people, bob, made)
    assert (second.awaits_others, second.num_approvals) == (False, 2)
    assert rig.lineage().champion_id == made.snapshot_id
    assert [row["decision"] for row in rig.query("SELECT decision FROM approvals ORDER BY decided_at")] == [
        "endorsed",
        "approved",
    ]
    assert rig.audit.verify(LINEAGE) is None


def test_two_people_at_once_make_it_live_once(rig: StoreRig, people: dict[str, SqlReviewStore]) -> None:
    rig.lineages.set_approval_policy(LINEAGE, TWO, actor="test")
    made, start = snapshot_of(rig, "r1"), Barrier(2)

    def at_once(name: str) -> Outcome:
        start.wait(timeout=30)
        return approve(rig, people, name, made)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(at_once, people))
    assert sorted(outcome.awaits_others for outcome in found) == [False, True]
    assert (len(lines(rig, AuditAction.snapshot_endorsed)), len(lines(rig, AuditAction.champion_moved))) == (1, 1)


def test_one_person_in_two_browsers_is_one(rig: StoreRig, people: dict[str, SqlReviewStore]) -> None:
    ada, _ = people
    rig.lineages.set_approval_policy(LINEAGE, TWO, actor="test")
    made, start = snapshot_of(rig, "r1"), Barrier(2)

    def at_once(_: int) -> Outcome:
        start.wait(timeout=30)
        return approve(rig, people, ada, made)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(at_once, range(2)))
    assert [outcome.awaits_others for outcome in found] == [True, True]
    assert len(lines(rig, AuditAction.snapshot_endorsed)) == 1
    assert rig.lineage().champion_id is None


def test_an_approval_given_before_the_champion_moved_does_not_count(
    rig: StoreRig, people: dict[str, SqlReviewStore]
) -> None:
    ada, bob = people
    rig.lineages.set_approval_policy(LINEAGE, TWO, actor="test")
    first, second = snapshot_of(rig, "r1"), snapshot_of(rig, "r2")
    assert approve(rig, people, ada, second).awaits_others
    for name in people:
        approve(rig, people, name, first)
    assert approve(rig, people, bob, second).awaits_others
    assert not approve(rig, people, ada, second).awaits_others


def test_two_people_and_neither_their_own(rig: StoreRig, people: dict[str, SqlReviewStore]) -> None:
    ada, bob = people
    rig.lineages.set_approval_policy(LINEAGE, named("two_approvers"), actor="test")
    made = snapshot_of(rig, "r1", submitted_by=ada)
    assert approve(rig, people, ada, made).reason == "you asked for r1 yourself; somebody else has to approve it"
    assert approve(rig, people, bob, made).awaits_others


def test_the_database_itself_lets_nobody_approve_alone_or_as_a_policy(
    rig: StoreRig, people: dict[str, SqlReviewStore], control: SqlReviewStore
) -> None:
    ada, _ = people
    rig.lineages.set_approval_policy(LINEAGE, TWO, actor="test")
    snapshot_of(rig, "r1")
    values = "lineage_id, snapshot_id, snapshot_digest, decision, actor, is_claimed, reason, channel"
    forged = f"INSERT INTO approvals ({values}) SELECT lineage_id, snapshot_id, digest, 'approved', '%s', false"
    for store, actor, why in (
        (people[ada], f"reviewer:{ada}", "asks for 2 people"),
        (people[ada], AUTOMATIC, "logged in"),
        (control, AUTOMATIC, "no policy that allows it"),
    ):
        with pytest.raises(Misconfigured, match=why), transaction(store._engine) as connection:
            connection.execute(text(f"{forged % actor}, '', 'cli' FROM snapshots"))


def test_what_passes_its_gates_goes_live_by_itself_where_nobody_has_to_approve(
    rig: StoreRig, control: SqlReviewStore
) -> None:
    made = snapshot_of(rig, "r1")
    assert control.approve_automatically(LINEAGE) is None
    rig.lineages.set_approval_policy(LINEAGE, named("gates_only"), actor="test")
    found = control.approve_automatically(LINEAGE)
    assert found is not None
    assert found.is_accepted
    assert rig.lineage().champion_id == made.snapshot_id
    assert control.approve_automatically(LINEAGE) is None
    [approval] = rig.query("SELECT actor, is_claimed, channel, reason FROM approvals")
    assert (approval["actor"], approval["is_claimed"], approval["channel"]) == (AUTOMATIC, False, "policy")
    assert "passes its gates" in approval["reason"]
    [moved] = lines(rig, AuditAction.champion_moved)
    assert (moved["channel"], moved["is_claimed"]) == ("policy", False)


def test_after_a_roll_back_nothing_goes_live_by_itself_until_a_person_acts(
    rig: StoreRig, control: SqlReviewStore
) -> None:
    rig.lineages.set_approval_policy(LINEAGE, named("gates_only"), actor="test")
    first, _ = snapshot_of(rig, "r1"), control.approve_automatically(LINEAGE)
    snapshot_of(rig, "r2")
    control.approve_automatically(LINEAGE)
    rig.submit(make_request("r3", prompt="The capital of r3 is"))
    lease = rig.acquire()
    batch = rig.claim(lease)
    assert rig.decide(first, Decision.rolled_back).is_accepted
    under_way = rig.snapshots.commit(lease, rig.new_snapshot(batch=batch))
    assert control.approve_automatically(LINEAGE) is None
    assert rig.lineage().champion_id == first.snapshot_id
    assert str(rig.lineage().hold).startswith("rolled back to 1")
    rig.lineages.resume(LINEAGE, actor="cli:ada")
    assert control.approve_automatically(LINEAGE) is not None
    assert rig.lineage().champion_id == under_way.snapshot_id


def test_below_a_risk_nobody_is_asked_and_above_it_a_person_is(rig: StoreRig, control: SqlReviewStore) -> None:
    limit = RiskLimit(max_edits=2, min_locality=0.5, max_quality_loss=0.5)
    rig.lineages.set_approval_policy(LINEAGE, ApprovalPolicy(automatic_below=limit), actor="test")
    first = snapshot_of(rig, "r1")
    found = control.approve_automatically(LINEAGE)
    assert found is not None
    assert found.is_accepted
    # Each has few edits; both together would go live with the second.
    snapshot_of(rig, "r2", "r3")
    second = snapshot_of(rig, "r4")
    refused = control.approve_automatically(LINEAGE)
    assert refused is not None
    assert refused.reason == "3 edits would go live, and 2 may without a person"
    assert rig.lineage().champion_id == first.snapshot_id
    assert lines(rig, AuditAction.approval_refused) == []
    assert rig.decide(second, APPROVED, actor="cli:ada (claimed)", is_claimed=True).is_accepted
    # Edits that are taken out count as well.
    rig.review.request_revert(LINEAGE, [rig.edit_id(one) for one in ("r1", "r2", "r3")], actor="test", reason="")
    rig.commit_removal(rig.acquire())
    refused = control.approve_automatically(LINEAGE)
    assert refused is not None
    assert refused.reason.startswith("3 edits would go live")


def test_edits_of_a_snapshot_that_was_rolled_back_go_live_with_what_stands_on_it(
    rig: StoreRig, control: SqlReviewStore
) -> None:
    limit = RiskLimit(max_edits=2, min_locality=0.5, max_quality_loss=0.5)
    rig.lineages.set_approval_policy(LINEAGE, ApprovalPolicy(automatic_below=limit), actor="test")
    first, _ = snapshot_of(rig, "r1"), control.approve_automatically(LINEAGE)
    second, _ = snapshot_of(rig, "r2", "r3"), control.approve_automatically(LINEAGE)
    assert rig.decide(first, Decision.rolled_back).is_accepted
    rig.lineages.resume(LINEAGE, actor="cli:ada")
    third = snapshot_of(rig, "r4")
    refused = control.approve_automatically(LINEAGE)
    assert refused is not None
    assert refused.reason == "3 edits would go live, and 2 may without a person"
    around = rig.mirror.entry(third.snapshot_id).around
    assert (around.num_waiting, around.num_waiting_edits) == (1, 2)
    assert [(one.seq, one.num_edits, len(one.edits)) for one in around.waiting] == [(second.seq, 2, 2)]


def test_edits_that_stood_on_a_rejected_snapshot_go_live_with_what_came_after(
    rig: StoreRig, control: SqlReviewStore
) -> None:
    rejected, retired = snapshot_of(rig, "r1", "r2"), snapshot_of(rig, "r3")
    assert rig.decide(rejected, Decision.rejected).is_accepted
    last = rig.commit_removal(rig.acquire())
    around = rig.mirror.entry(last.snapshot_id).around
    assert (around.num_waiting, around.num_waiting_edits) == (1, 1)
    assert [(one.seq, one.num_edits) for one in around.waiting] == [(retired.seq, 1)]
    limit = RiskLimit(max_edits=2, min_locality=0.5, max_quality_loss=0.5)
    rig.lineages.set_approval_policy(LINEAGE, ApprovalPolicy(automatic_below=limit), actor="test")
    refused = control.approve_automatically(LINEAGE)
    assert refused is not None
    assert refused.reason.startswith("3 edits would go live")


def test_a_ledger_that_was_solved_anew_never_goes_live_below_a_risk(rig: StoreRig, control: SqlReviewStore) -> None:
    rig.lineages.set_approval_policy(LINEAGE, ApprovalPolicy(automatic_below=RiskLimit(max_edits=2)), actor="test")
    snapshot_of(rig, "r1")
    assert control.approve_automatically(LINEAGE) is not None
    rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester (claimed)", reason="")
    rig.commit_removal(rig.acquire())
    for later in ("r2", "r3"):
        refused = control.approve_automatically(LINEAGE)
        assert refused is not None
        assert not refused.is_accepted
        assert "solved anew" in refused.reason
        snapshot_of(rig, later)
    rig.lineages.set_approval_policy(LINEAGE, named("gates_only"), actor="test")
    approved = control.approve_automatically(LINEAGE)
    assert approved is not None
    assert approved.is_accepted


def test_quality_is_compared_with_that_of_the_champion(rig: StoreRig, control: SqlReviewStore) -> None:
    limit = RiskLimit(min_locality=0.5, max_quality_loss=0.02)
    rig.lineages.set_approval_policy(LINEAGE, ApprovalPolicy(automatic_below=limit), actor="test")
    snapshot_of(rig, "r1")
    control.approve_automatically(LINEAGE)
    rig.submit(make_request("r2", prompt="The capital of r2 is"))
    lease = rig.acquire()
    worse = replace(make_measurements().candidate, perplexity=21.0)
    new = rig.new_snapshot(batch=rig.claim(lease))
    report = judge(POLICY, replace(new.report.measurements, parent=worse, candidate=worse))
    rig.snapshots.commit(lease, replace(new, report=report))
    refused = control.approve_automatically(LINEAGE)
    assert refused is not None
    assert refused.reason.startswith("quality falls by 0.05")


def test_a_policy_is_changed_with_a_line_that_says_what_it_was(rig: StoreRig) -> None:
    rig.lineages.set_approval_policy(LINEAGE, TWO, actor="test")
    rig.lineages.set_approval_policy(LINEAGE, TWO, actor="test")
    [line] = lines(rig, AuditAction.lineage_ruled)
    assert (line["approval_rule"], line["was"]) == ("authenticated", "anyone")
    assert line["policy"]["approvers"] == 2
    assert rig.lineage().settings.approval_policy == TWO
    # An earlier version knows the rule alone: what it sets counts.
    rig.query("UPDATE lineages SET approval_rule = 'four_eyes'")
    assert rig.lineage().settings.approval_policy == named("four_eyes")
