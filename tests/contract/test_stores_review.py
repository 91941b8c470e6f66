"""Decisions of people: each is checked on locked rows, carried out whole, and recorded, refusals included."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pipeline.adapters.logins import Login
from pipeline.adapters.sql.approving.decisions import MAX_ATTEMPTS
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput, UnknownLineage, UnknownRecord
from pipeline.domain.gates import GatePolicy
from pipeline.domain.lineages import Lease
from pipeline.domain.review.approvals import Approval, Channel, Decision, Outcome
from pipeline.domain.snapshots import Snapshot
from tests.support.store_rig import LINEAGE, StoreRig, failing_report

APPROVED, REJECTED, ROLLED_BACK = Decision.approved, Decision.rejected, Decision.rolled_back


def three_snapshots(rig: StoreRig) -> tuple[Lease, list[Snapshot]]:
    """Snapshots 1, 2 and 3 with the edits a, b and c."""
    lease = rig.acquire()
    made = []
    for name in "abc":
        rig.correct(name)
        made.append(rig.commit_batch(lease))
    return lease, made


def statuses(rig: StoreRig) -> list[str]:
    return [snapshot.status.value for snapshot in rig.snapshots.snapshots(LINEAGE)]


def events(rig: StoreRig, prefix: str) -> list[str]:
    found = [event.action.value for event in rig.audit.events(LINEAGE, limit=10_000)]
    return [action for action in found if action.startswith(prefix)]


def test_approving_approves_what_it_is_built_on_and_moves_the_champion(rig: StoreRig) -> None:
    _, (first, second, _) = three_snapshots(rig)
    outcome = rig.decide(second, APPROVED)
    assert (outcome.is_accepted, outcome.reason) == (True, "")
    assert statuses(rig) == ["approved", "approved", "candidate"]
    assert (rig.lineage().champion_id, rig.lineage().champion_seq) == (second.snapshot_id, 2)
    assert rig.snapshots.snapshot(LINEAGE, "champion").snapshot_id == second.snapshot_id
    assert rig.actions(first.snapshot_id) == ["snapshot:created", "snapshot:approved"]
    assert rig.actions(second.snapshot_id) == ["snapshot:created", "snapshot:approved", "champion:moved"]
    assert rig.debts("champion") == [{"lineage": LINEAGE}]
    row = rig.query("SELECT * FROM approvals")[0]
    assert (str(row["approval_id"]), row["actor"], row["refusal"]) == (
        outcome.approval_id,
        "cli:reviewer (claimed)",
        None,
    )
    assert rig.audit.verify(LINEAGE) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"snapshot_digest": "0" * 64}, "the digest seen"),
        ({"champion_seen": "01a205d0-87b0-7bda-8165-f941a4cfa9ca"}, "the champion has moved"),
        ({"champion_seen": "nonsense"}, "the champion has moved"),
    ],
)
def test_a_decision_on_something_else_than_what_is_there_is_refused_and_recorded(
    rig: StoreRig, changes: dict[str, str], said: str
) -> None:
    _, (first, _, _) = three_snapshots(rig)
    outcome = rig.decide(first, APPROVED, is_claimed=True, channel=Channel.registry, **changes)
    assert not outcome.is_accepted
    assert said in outcome.reason
    assert statuses(rig) == ["candidate"] * 3
    row = rig.query("SELECT * FROM approvals")[0]
    assert (row["refusal"], row["is_claimed"], row["channel"]) == (outcome.reason, True, "registry")
    assert rig.actions(first.snapshot_id) == ["snapshot:created", "approval:refused"]
    assert rig.debts("champion") == []


def test_a_report_of_another_digest_approves_nothing(rig: StoreRig) -> None:
    _, (first, _, _) = three_snapshots(rig)
    rig.query("UPDATE gate_reports SET snapshot_digest = 'f' WHERE snapshot_digest = %s", first.digest)
    assert "no passing gate report" in rig.decide(first, APPROVED).reason


def test_what_was_judged_by_another_policy_is_judged_again_by_that_of_now(rig: StoreRig) -> None:
    _, (first, second, _) = three_snapshots(rig)
    change = rig.lineages.change_policy
    change(LINEAGE, {"change_norm_max": "0.001"}, actor="cli:operator (claimed)", reason="too rough")
    refused = rig.decide(second, APPROVED).reason
    assert "gate policy has changed" in refused
    assert "change_norm 0.01 (maximum 0.001)" in refused
    change(LINEAGE, {"change_norm_max": "0.02"}, actor="cli:operator (claimed)", reason="now it is")
    assert rig.decide(first, APPROVED).is_accepted


def test_a_change_of_policy_is_audited_with_who_and_why_and_reports_keep_the_policy_they_were_judged_by(
    rig: StoreRig,
) -> None:
    _, (first, _, _) = three_snapshots(rig)
    given = {"generalization_min": "0.75", "locality_kl_max": "0.5"}
    before = rig.lineages.change_policy(LINEAGE, given, actor="cli:ann (claimed)", reason="rephrases come now")
    assert rig.lineages.lineage(LINEAGE).settings.policy == replace(before, generalization_min=0.75)
    again = rig.lineages.change_policy(LINEAGE, given, actor="cli:ann (claimed)", reason="the same")
    assert again.generalization_min == 0.75
    with pytest.raises(InvalidInput, match="a key of a gate policy"):
        rig.lineages.change_policy(LINEAGE, {"nope": "1"}, actor="cli:ann (claimed)", reason="")
    [event] = [event for event in rig.audit.events(LINEAGE) if event.action == AuditAction.lineage_policy_changed]
    said = json.loads(event.payload)
    assert (event.actor, said["reason"]) == ("cli:ann (claimed)", "rephrases come now")
    assert (said["was"], said["is"]) == (
        {"generalization_min": before.generalization_min},
        {"generalization_min": 0.75},
    )
    report = rig.snapshots.report(first.gate_report_id)
    assert GatePolicy.from_stored(report["policy"]) == before
    assert report["policy_digest"] == said["was_digest"] == before.digest


@pytest.mark.parametrize("decision", [APPROVED, REJECTED, ROLLED_BACK])
def test_the_same_decision_twice_is_accepted_and_writes_nothing(rig: StoreRig, decision: Decision) -> None:
    _, (first, second, third) = three_snapshots(rig)
    rig.decide(second, APPROVED)
    snapshot = {APPROVED: second, REJECTED: third, ROLLED_BACK: first}[decision]
    asked = rig.asked(snapshot, decision)
    once = rig.review.decide(asked)
    before = rig.contents()
    assert once.is_accepted
    assert rig.review.decide(asked) == once
    assert rig.review.decide(rig.asked(snapshot, decision)) == once
    assert rig.contents() == before


def test_a_decision_about_nothing_of_ours_is_unknown(rig: StoreRig) -> None:
    _, (first, _, _) = three_snapshots(rig)
    rig.new_lineage("others")
    with pytest.raises(UnknownRecord):
        rig.decide(first, APPROVED, lineage="others")
    with pytest.raises(UnknownRecord):
        rig.decide(first, APPROVED, snapshot_id="nonsense")
    with pytest.raises(UnknownLineage):
        rig.decide(first, APPROVED, lineage="nobody")


def test_of_two_approvers_at_once_exactly_one_wins(rig: StoreRig) -> None:
    _, (_, second, third) = three_snapshots(rig)
    asked = [rig.asked(second, APPROVED, actor="cli:one"), rig.asked(third, APPROVED, actor="cli:two")]
    outcomes = _at_once(rig, asked)
    assert sorted(outcome.is_accepted for outcome in outcomes) == [False, True]
    winner, loser = sorted(outcomes, key=lambda outcome: outcome.reason)
    assert "the champion has moved" in loser.reason
    assert rig.lineage().champion_id == asked[outcomes.index(winner)].snapshot_id
    assert events(rig, "champion") == ["champion:moved"]
    assert len(rig.debts("champion")) == 1
    assert rig.audit.verify(LINEAGE) is None


def test_of_an_approver_and_a_rejecter_at_once_exactly_one_wins(rig: StoreRig) -> None:
    _, (_, _, third) = three_snapshots(rig)
    outcomes = _at_once(rig, [rig.asked(third, APPROVED), rig.asked(third, REJECTED)])
    assert sorted(outcome.is_accepted for outcome in outcomes) == [False, True]
    assert (rig.lineage().champion_id == third.snapshot_id) is outcomes[0].is_accepted
    assert statuses(rig)[2] == ("approved" if outcomes[0].is_accepted else "rejected")
    assert len(rig.query("SELECT 1 FROM approvals")) == 2


def test_rejecting_retires_what_stands_on_it_and_owes_a_head_without_its_edits(rig: StoreRig) -> None:
    lease, (_, second, third) = three_snapshots(rig)
    b, c = rig.edit_id("b"), rig.edit_id("c")
    assert rig.decide(second, REJECTED).is_accepted
    assert statuses(rig) == ["candidate", "rejected", "retired"]
    assert rig.status(b) == "snapshotted", "until the head is rebuilt without it"
    assert rig.debts("doorbell")[-1]["lineage"] == LINEAGE
    head = rig.commit_removal(lease)
    assert rig.active(head.snapshot_id) == {rig.edit_id("a"), c}
    assert (rig.status(b), rig.status(c)) == ("rejected", "snapshotted")
    assert "snapshot 2 was rejected" in rig.edit(b)["reason"]
    assert (head.seq, head.parent_id, head.status) == (4, third.snapshot_id, "candidate")
    assert rig.queue.next_removal(lease) is None
    assert rig.decide(head, APPROVED).is_accepted
    assert statuses(rig) == ["approved", "rejected", "retired", "approved"]


def test_rejecting_reinstates_what_its_edits_had_displaced(rig: StoreRig) -> None:
    lease = rig.acquire()
    old = rig.correct("a", fact="France", target="Nice", minute=1)
    rig.commit_batch(lease)
    late = rig.correct("b", fact="France", target="Lyon", minute=3)
    second = rig.commit_batch(lease)
    never_in = rig.correct("c", fact="France", target="Brest", minute=2)
    assert rig.claim(lease) is None
    rig.decide(second, REJECTED)
    removal = rig.queue.next_removal(lease)
    assert removal is not None
    assert (removal.edit_ids, removal.reinstated_ids) == ((late,), (old,)), "what never was in a snapshot stays out"
    head = rig.commit_removal(lease)
    assert rig.active(head.snapshot_id) == {old}
    assert [rig.status(one) for one in (old, late, never_in)] == ["snapshotted", "rejected", "superseded"]
    assert rig.edit(old)["superseded_by"] is None
    assert rig.actions(old)[-1] == "edit:reinstated"
    rows = rig.snapshots.ledger_plan(LINEAGE, snapshot_id=head.snapshot_id).rows
    assert [one.edit_ids for one in rows] == [(old,)]
    brought = rig.query("SELECT rows ->> 'digest' AS digest FROM edit_rows WHERE snapshot_id = %s", head.snapshot_id)
    assert rows[0].file.digest == brought[0]["digest"], "the newest rows of an edit count"


def test_what_was_corrected_again_after_the_rejected_snapshot_stays_corrected(rig: StoreRig) -> None:
    lease = rig.acquire()
    old = rig.correct("a", fact="France", target="Nice", minute=1)
    rig.commit_batch(lease)
    middle, other = rig.correct("b", fact="France", target="Lyon", minute=2), rig.correct("x")
    second = rig.commit_batch(lease)
    newest = rig.correct("c", fact="France", target="Brest", minute=3)
    rig.commit_batch(lease)
    rig.decide(second, REJECTED)
    head = rig.commit_removal(lease)
    assert rig.active(head.snapshot_id) == {newest}
    assert [rig.status(one) for one in (old, middle, other)] == ["superseded", "superseded", "rejected"]


def test_a_batch_that_was_under_way_while_its_parent_was_rejected_cannot_be_approved(rig: StoreRig) -> None:
    lease, (_, _, third) = three_snapshots(rig)
    rig.correct("d")
    batch = rig.claim(lease)
    assert batch is not None
    rig.decide(third, REJECTED)
    tainted = rig.snapshots.commit(lease, rig.new_snapshot(batch=batch))
    assert tainted.status == "retired"
    assert rig.actions(tainted.snapshot_id) == ["snapshot:created", "snapshot:retired"]
    assert not rig.decide(tainted, APPROVED).is_accepted
    head = rig.commit_removal(lease)
    assert rig.active(head.snapshot_id) == {rig.edit_id(name) for name in "abd"}
    assert rig.decide(head, APPROVED).is_accepted


def test_what_an_approved_snapshot_stands_on_cannot_be_rejected(rig: StoreRig) -> None:
    _, (first, second, _) = three_snapshots(rig)
    rig.decide(second, APPROVED)
    outcome = rig.decide(first, REJECTED)
    assert "revert its edits instead" in outcome.reason
    assert rig.query("SELECT 1 FROM removals") == []


def test_rejecting_a_removal_owes_nothing(rig: StoreRig) -> None:
    lease, _ = three_snapshots(rig)
    rig.review.request_revert(LINEAGE, [rig.edit_id("b")], actor="cli:tester", reason="wrong")
    removal = rig.commit_removal(lease)
    assert rig.decide(removal, REJECTED).is_accepted
    assert rig.queue.next_removal(lease) is None


def test_reverting_takes_an_edit_out_of_a_new_candidate(rig: StoreRig) -> None:
    lease, (_, _, third) = three_snapshots(rig)
    rig.decide(third, APPROVED)
    b = rig.edit_id("b")
    (removal_id,) = rig.review.request_revert(LINEAGE, [b], actor="cli:tester", reason="it was true before")
    assert rig.status(b) == "snapshotted"
    assert rig.actions(removal_id) == ["removal:requested"]
    head = rig.commit_removal(lease)
    assert rig.active(head.snapshot_id) == {rig.edit_id("a"), rig.edit_id("c")}
    assert (rig.status(b), rig.edit(b)["reason"]) == ("reverted", "it was true before")
    assert rig.lineage().champion_id == third.snapshot_id
    row = rig.query("SELECT * FROM removals")[0]
    assert (row["status"], row["outcome"], str(row["snapshot_id"])) == ("done", "snapshot 4", head.snapshot_id)
    reverted = [event for event in rig.audit.events(LINEAGE) if event.action == "edit:reverted"]
    assert [event.actor for event in reverted] == ["cli:tester"]
    with pytest.raises(InvalidInput, match="reverted"):
        rig.review.request_revert(LINEAGE, [b], actor="cli:tester", reason="again")


def test_a_queued_edit_is_reverted_at_once(rig: StoreRig) -> None:
    edit_id = rig.correct("a")
    assert rig.review.request_revert(LINEAGE, [edit_id], actor="cli:tester", reason="a mistake") == ()
    assert rig.status(edit_id) == "reverted"
    assert rig.claim(rig.acquire()) is None


def test_asking_for_the_same_revert_again_owes_it_once(rig: StoreRig) -> None:
    three_snapshots(rig)
    a, b = rig.edit_id("a"), rig.edit_id("b")
    first = rig.review.request_revert(LINEAGE, [b], actor="cli:tester", reason="wrong")
    assert rig.review.request_revert(LINEAGE, [b], actor="cli:tester", reason="wrong") == first
    both = rig.review.request_revert(LINEAGE, [b, a], actor="cli:tester", reason="wrong")
    assert both[0] == first[0]
    assert [row["edit_ids"] for row in rig.query("SELECT edit_ids FROM removals ORDER BY removal_id")] == [[b], [a]]


@pytest.mark.parametrize("bad", ["nonsense", "01a205d0-87b0-7bda-8165-f941a4cfa9ca"])
def test_one_unknown_edit_reverts_none(rig: StoreRig, bad: str) -> None:
    edit_id = rig.correct("a")
    before = rig.contents()
    with pytest.raises(UnknownRecord, match=bad):
        rig.review.request_revert(LINEAGE, [edit_id, bad], actor="cli:tester", reason="")
    assert rig.contents() == before


def test_an_edit_in_a_batch_cannot_be_reverted_until_that_is_done(rig: StoreRig) -> None:
    edit_id = rig.correct("a")
    rig.claim(rig.acquire())
    with pytest.raises(InvalidInput, match="it is in a batch now"):
        rig.review.request_revert(LINEAGE, [edit_id], actor="cli:tester", reason="")


def test_a_removal_whose_edits_have_left_already_is_done(rig: StoreRig) -> None:
    lease = rig.acquire()
    old = rig.correct("a", fact="France", target="Nice", minute=1)
    rig.commit_batch(lease)
    rig.correct("b", fact="France", target="Lyon", minute=2)
    batch = rig.claim(lease)
    assert batch is not None
    rig.review.request_revert(LINEAGE, [old], actor="cli:tester", reason="wrong")
    rig.snapshots.commit(lease, rig.new_snapshot(batch=batch))
    assert rig.queue.next_removal(lease) is None
    assert rig.query("SELECT status, outcome FROM removals") == [
        {"status": "done", "outcome": "its edits had left the head before"}
    ]


def test_a_removal_that_fails_leaves_the_head_and_is_recorded(rig: StoreRig) -> None:
    lease, (_, _, third) = three_snapshots(rig)
    b = rig.edit_id("b")
    (removal_id,) = rig.review.request_revert(LINEAGE, [b], actor="cli:tester", reason="wrong")
    removal = rig.queue.next_removal(lease)
    assert removal is not None
    rig.queue.fail_removal(lease, removal, reason="retention 0.2", report=failing_report([b]))
    assert rig.lineage().head_id == third.snapshot_id
    assert rig.status(b) == "snapshotted"
    row = rig.query("SELECT * FROM removals JOIN gate_reports USING (gate_report_id)")[0]
    assert (row["status"], row["outcome"], row["verdict"]) == ("failed", "retention 0.2", "failed")
    assert rig.actions(removal_id) == ["removal:requested", "removal:failed"]
    assert rig.queue.next_removal(lease) is None
    with pytest.raises(InvalidInput, match="still owed"):
        rig.queue.fail_removal(lease, removal, reason="again", report=None)


def test_removals_are_due_also_while_the_lineage_is_held(rig: StoreRig) -> None:
    lease, _ = three_snapshots(rig)
    rig.lineages.hold(LINEAGE, reason="saturated", actor="cli:tester")
    rig.review.request_revert(LINEAGE, [rig.edit_id("b")], actor="cli:tester", reason="wrong")
    rig.commit_removal(lease)
    assert rig.lineage().hold == "saturated", "only the hold of a roll back is lifted by a revert"


def test_rolling_back_moves_the_champion_at_once_and_holds_the_lineage(rig: StoreRig) -> None:
    lease, (first, second, third) = three_snapshots(rig)
    rig.decide(second, APPROVED)
    assert rig.decide(first, ROLLED_BACK, reason="it lies").is_accepted
    assert statuses(rig) == ["approved", "rolled_back", "candidate"]
    lineage = rig.lineage()
    assert (lineage.champion_id, lineage.head_id) == (first.snapshot_id, third.snapshot_id)
    assert lineage.hold == "rolled back to 1: it lies"
    assert len(rig.debts("champion")) == 2
    assert events(rig, "lineage:") == ["lineage:created", "lineage:held"]
    rig.correct("d")
    assert rig.claim(lease) is None


def test_a_revert_lifts_the_hold_of_a_roll_back(rig: StoreRig) -> None:
    lease, (first, second, _) = three_snapshots(rig)
    rig.decide(second, APPROVED)
    rig.decide(first, ROLLED_BACK)
    rig.review.request_revert(LINEAGE, [rig.edit_id("b")], actor="cli:tester", reason="wrong")
    head = rig.commit_removal(lease)
    assert rig.lineage().hold is None
    assert events(rig, "lineage:")[-1] == "lineage:resumed"
    assert rig.decide(head, APPROVED).is_accepted
    assert statuses(rig) == ["approved", "rolled_back", "approved", "approved"]


def test_approving_again_what_was_rolled_back_lifts_the_hold(rig: StoreRig) -> None:
    _, (first, second, _) = three_snapshots(rig)
    rig.decide(second, APPROVED)
    rig.decide(first, ROLLED_BACK)
    assert rig.decide(second, APPROVED).is_accepted
    assert (rig.lineage().champion_id, rig.lineage().hold) == (second.snapshot_id, None)
    assert statuses(rig) == ["approved", "approved", "candidate"]
    assert rig.decide(first, ROLLED_BACK).is_accepted, "a roll back that was undone can be decided once more"
    assert rig.lineage().champion_id == first.snapshot_id
    assert len(rig.debts("champion")) == 4


def test_a_roll_back_keeps_the_reason_of_another_hold(rig: StoreRig) -> None:
    _, (first, second, _) = three_snapshots(rig)
    rig.decide(second, APPROVED)
    rig.lineages.hold(LINEAGE, reason="saturated", actor="cli:tester")
    rig.decide(first, ROLLED_BACK)
    assert rig.lineage().hold == "saturated"


@pytest.mark.parametrize("place", [0, 2])
def test_only_an_approved_ancestor_can_be_rolled_back_to(rig: StoreRig, place: int) -> None:
    _, made = three_snapshots(rig)
    if place == 2:
        rig.decide(made[1], APPROVED)
    assert not rig.decide(made[place], ROLLED_BACK).is_accepted


def test_a_note_is_one_line_of_history(rig: StoreRig) -> None:
    rig.review.note(LINEAGE, action="champion:restored", subject="3", actor="reconciler", payload={"found": "2"})
    last = rig.audit.events(LINEAGE)[-1]
    assert (last.action, last.subject, last.actor, last.payload) == (
        "champion:restored",
        "3",
        "reconciler",
        '{"found":"2"}',
    )
    with pytest.raises(InvalidInput, match="audit action"):
        rig.review.note(LINEAGE, action="made:up", subject="3", actor="reconciler", payload={})


def _at_once(rig: StoreRig, asked: list[Approval]) -> list[Outcome]:
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        return list(pool.map(rig.review.decide, asked))


def test_a_removal_that_never_comes_to_an_end_fails_at_last(rig: StoreRig) -> None:
    lease, (_, _, third) = three_snapshots(rig)
    (removal_id,) = rig.review.request_revert(LINEAGE, [rig.edit_id("b")], actor="cli:tester", reason="wrong")
    for _ in range(MAX_ATTEMPTS):
        removal = rig.queue.next_removal(lease)
        assert removal is not None
        assert removal.removal_id == removal_id
    assert rig.queue.next_removal(lease) is None
    assert rig.lineage().head_id == third.snapshot_id
    assert rig.status(rig.edit_id("b")) == "snapshotted"
    assert rig.actions(removal_id) == ["removal:requested", "removal:failed"]


@pytest.mark.parametrize("login", [Login.web, Login.console, Login.control])
def test_no_statement_makes_live_what_nobody_has_approved(rig: StoreRig, login: Login) -> None:
    rig.correct("r1")
    snapshot = rig.commit_batch(rig.acquire())
    statement = text("UPDATE lineages SET champion_snapshot_id = CAST(:snapshot AS uuid)")
    with pytest.raises(DBAPIError, match="it is not approved"), rig.engines[login].begin() as connection:
        connection.execute(statement, {"snapshot": snapshot.snapshot_id})
    assert rig.lineage().champion_id is None
