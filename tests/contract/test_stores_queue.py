"""The queue: what is claimed, what makes way for what, and how edits come back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipeline.domain.batches import SIBLINGS
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.errors import IllegalTransition, InvalidInput, UnknownRecord
from tests.support.factories import CHAT_REQUEST, make_request
from tests.support.store_rig import LINEAGE, StoreRig, failing_report


def test_nothing_is_claimed_when_nothing_waits(rig: StoreRig) -> None:
    assert rig.claim(rig.acquire()) is None


def test_the_oldest_corrections_are_claimed_first(rig: StoreRig) -> None:
    late, early, middle = (rig.correct(name, minute=minute) for name, minute in (("a", 9), ("b", 1), ("c", 5)))
    batch = rig.claim(rig.acquire(), limit=2)
    assert batch is not None
    assert [edit.edit_id for edit in batch.edits] == [early, middle]
    assert (rig.status(early), rig.status(late)) == ("claimed", "received")
    assert (batch.ordinal, batch.parent_id, batch.displaced) == (1, None, ())


def test_a_claimed_edit_is_the_request_that_was_recorded(rig: StoreRig) -> None:
    request = make_request("r1", rephrases=("Whose capital is it?",), subject="Australia", relation="capital")
    rig.submit(request)
    batch = rig.claim(rig.acquire())
    assert batch is not None
    assert batch.edits[0].request == request


def test_a_claimed_chat_is_the_request_that_was_recorded_also_beside_one_without(rig: StoreRig) -> None:
    asked = parse_object(CHAT_REQUEST)
    whole = make_request(
        "r1", subject="Australia", aliases=("Oz", "\u202eOz"), question="What?", answer="Canberra, mate"
    )
    plain = make_request("r2")
    rig.submit(plain, asked, whole)
    batch = rig.claim(rig.acquire())
    assert batch is not None
    assert {edit.request.request_id: edit.request for edit in batch.edits} == {
        request.request_id: request for request in (plain, asked, whole)
    }
    assert all(edit.request.payload_digest == rig.edit(edit.edit_id)["payload_digest"] for edit in batch.edits)


def test_of_two_corrections_of_one_chat_the_later_holds_and_displaces_the_active_one(rig: StoreRig) -> None:
    first, second, third = (
        parse_object(CHAT_REQUEST | {"request_id": name, "target_new": target, "answer": None, "occurred_at": at})
        for name, target, at in (
            ("a", "Francis", "2026-06-01T12:00:00Z"),
            ("b", "Leo XIV", "2026-06-01T12:01:00Z"),
            ("c", "Leo", "2026-06-01T12:02:00Z"),
        )
    )
    made_way, held = rig.submit(first, second)
    lease = rig.acquire()
    rig.commit_batch(lease)
    assert (rig.status(made_way), rig.status(held)) == ("superseded", "snapshotted")
    [latest] = rig.submit(third)
    batch = rig.claim(lease)
    assert batch is not None
    assert batch.displaced == ((held, latest),)


def test_a_batch_that_is_not_full_waits_for_its_oldest_edit(rig: StoreRig) -> None:
    rig.correct("r1")
    rig.correct("r2")
    lease = rig.acquire()
    assert rig.queue.claim_batch(lease, limit=3, max_wait=timedelta(hours=1)) is None
    batch = rig.queue.claim_batch(lease, limit=2, max_wait=timedelta(hours=1))
    assert batch is not None, "a full batch does not wait"


def test_a_batch_closes_when_its_oldest_edit_has_waited(rig: StoreRig) -> None:
    rig.correct("r1")
    rig.query("UPDATE edit_requests SET received_at = clock_timestamp() - interval '2 hours'")
    assert rig.queue.claim_batch(rig.acquire(), limit=3, max_wait=timedelta(hours=1)) is not None


@pytest.mark.parametrize(("minutes", "is_due"), [(10, False), (20, True)])
def test_a_batch_closes_when_no_other_edit_has_come_for_a_quarter_of_its_wait(
    rig: StoreRig, minutes: int, is_due: bool
) -> None:
    for request_id, ago in (("r1", 50), ("r2", minutes)):
        edit_id = rig.correct(request_id)
        rig.query(
            f"UPDATE edit_requests SET received_at = clock_timestamp() - interval '{ago} minutes' "
            f"WHERE edit_id = '{edit_id}'"
        )
    batch = rig.queue.claim_batch(rig.acquire(), limit=3, max_wait=timedelta(hours=1))
    assert (batch is not None) == is_due
    assert batch is None or len(batch.edits) == 2


def test_a_held_lineage_gives_no_batch(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    rig.lineages.hold(LINEAGE, reason="saturated", actor="cli:tester")
    assert rig.claim(rig.acquire()) is None
    assert rig.status(edit_id) == "received"


def test_a_lineage_has_one_batch_at_a_time(rig: StoreRig) -> None:
    rig.correct("r1")
    rig.correct("r2")
    lease = rig.acquire()
    rig.claim(lease, limit=1)
    with pytest.raises(InvalidInput, match="the batch before to be finished"):
        rig.claim(lease)


def test_of_several_corrections_of_a_fact_only_the_latest_is_claimed(rig: StoreRig) -> None:
    latest = rig.correct("c", fact="France", target="Lyon", minute=3)
    first = rig.correct("a", fact="France", target="Nice", minute=1)
    second = rig.correct("b", fact="FRANCE", target="Lyon", minute=2)
    respelt = rig.correct("d", fact="France", target="LYON", minute=2)
    batch = rig.claim(rig.acquire())
    assert batch is not None
    assert [edit.edit_id for edit in batch.edits] == [latest]
    assert {str(rig.edit(one)["superseded_by"]) for one in (first, second, respelt)} == {latest}
    assert rig.edit(second)["reason"] == "duplicate of c, 'The capital of France is'"
    assert "corrects the same fact" in rig.edit(first)["reason"]
    assert "corrects the same fact" in rig.edit(respelt)["reason"]
    assert {debt["edit_id"] for debt in rig.debts("result")} == {first, second, respelt}


def test_of_two_corrections_of_the_same_moment_the_later_offset_wins(rig: StoreRig) -> None:
    first = rig.correct("a", fact="France", target="Nice")
    second = rig.correct("b", fact="France", target="Lyon")
    rig.claim(rig.acquire())
    assert (rig.status(first), rig.status(second)) == ("superseded", "claimed")


def test_a_later_correction_wins_also_while_it_is_not_due(rig: StoreRig) -> None:
    later = rig.correct("b", fact="France", target="Lyon", minute=2)
    rig.query("UPDATE edit_requests SET next_attempt_at = clock_timestamp() + interval '1 hour'")
    earlier = rig.correct("a", fact="France", target="Nice", minute=1)
    assert rig.claim(rig.acquire()) is None
    assert (rig.status(earlier), rig.status(later)) == ("superseded", "received")


def test_a_full_batch_is_found_behind_corrections_that_made_way(rig: StoreRig) -> None:
    for minute in range(4):
        rig.correct(f"old-{minute}", fact="France", target=f"City {minute}", minute=minute)
    last = rig.correct("other", minute=9)
    batch = rig.claim(rig.acquire(), limit=2)
    assert batch is not None
    assert {edit.edit_id for edit in batch.edits} == {rig.edit_id("old-3"), last}


def test_a_late_arrival_older_than_the_active_edit_is_superseded(rig: StoreRig) -> None:
    lease = rig.acquire()
    active = rig.correct("new", fact="France", target="Lyon", minute=5)
    rig.commit_batch(lease)
    late = rig.correct("old", fact="France", target="Nice", minute=1)
    assert rig.claim(lease) is None
    edit = rig.edit(late)
    assert (edit["status"], str(edit["superseded_by"])) == ("superseded", active)


def test_a_correction_that_asks_for_what_is_active_is_a_duplicate(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a", fact="France", target="Lyon", minute=1)
    rig.commit_batch(lease)
    again = rig.correct("b", fact="France", target="Lyon", minute=5)
    assert rig.claim(lease) is None
    told = "duplicate of a, 'The capital of France is'"
    assert (rig.status(again), rig.edit(again)["reason"]) == ("superseded", told)


def test_a_correction_of_the_spelling_alone_displaces_what_is_active(rig: StoreRig) -> None:
    lease = rig.acquire()
    active = rig.correct("a", fact="phone", target="Iphone", minute=1)
    rig.commit_batch(lease)
    respelt = rig.correct("b", fact="phone", target="iPhone", minute=5)
    batch = rig.claim(lease)
    assert batch is not None
    assert batch.displaced == ((active, respelt),)


def test_a_newer_correction_displaces_the_active_edit_only_when_it_is_committed(rig: StoreRig) -> None:
    lease = rig.acquire()
    old = rig.correct("a", fact="France", target="Nice", minute=1)
    rig.commit_batch(lease)
    new = rig.correct("b", fact="France", target="Lyon", minute=2)
    batch = rig.claim(lease)
    assert batch is not None
    assert batch.displaced == ((old, new),)
    assert rig.status(old) == "snapshotted"
    rig.snapshots.commit(lease, rig.new_snapshot(batch=batch))
    assert (rig.status(old), str(rig.edit(old)["superseded_by"])) == ("superseded", new)


def test_released_edits_wait_longer_every_time_and_are_dead_in_the_end(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    lease = rig.acquire()
    waits = []
    for _ in range(3):
        rig.make_due()
        rig.claim(lease)
        before = rig.now()
        rig.queue.release(lease, [edit_id], reason="ranks died", max_attempts=3)
        waits.append(rig.edit(edit_id)["next_attempt_at"] - before)
    edit = rig.edit(edit_id)
    assert (edit["status"], edit["attempts"], edit["reason"]) == ("dead", 3, "ranks died")
    assert timedelta(0) < waits[0] < waits[1]
    assert [debt["status"] for debt in rig.debts("result")] == ["dead"]
    assert rig.actions(edit_id)[-1] == "edit:died"


def test_a_released_edit_is_not_claimed_before_it_is_due(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    rig.query("UPDATE edit_requests SET attempts = 6")
    lease = rig.acquire()
    rig.claim(lease)
    rig.queue.release(lease, [edit_id], reason="ranks died", max_attempts=9)
    assert rig.claim(lease) is None
    rig.make_due()
    batch = rig.claim(lease)
    assert batch is not None
    assert batch.edits[0].attempts == 7


def test_releasing_a_batch_leaves_what_was_committed_of_it(rig: StoreRig) -> None:
    kept, left = rig.correct("a", minute=1), rig.correct("b", minute=2)
    lease = rig.acquire()
    batch = rig.claim(lease)
    assert batch is not None
    rig.snapshots.commit(lease, rig.new_snapshot(batch=batch, accepted=[kept]))
    rig.queue.release(lease, [kept, left], reason="late failure", max_attempts=3)
    assert (rig.status(kept), rig.status(left)) == ("snapshotted", "received")
    found = rig.query(
        "SELECT edit_id, outcome, finished_at, seconds FROM edit_batches JOIN batch_edits USING (batch_id)"
    )
    assert {str(row["edit_id"]): row["outcome"] for row in found} == {kept: "snapshotted", left: "undecided"}
    assert found[0]["finished_at"] is not None
    assert found[0]["seconds"] == {"capture": 0.5, "solve": 0.25}


def test_a_rejected_edit_keeps_its_reason_and_the_report(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    lease = rig.acquire()
    rig.claim(lease)
    report = failing_report([edit_id])
    rig.queue.reject(lease, {edit_id: "the target is not the argmax"}, report=report)
    edit = rig.edit(edit_id)
    assert (edit["status"], edit["reason"]) == ("rejected", "the target is not the argmax")
    found = rig.query("SELECT g.* FROM batch_edits JOIN gate_reports g USING (gate_report_id)")
    assert (found[0]["verdict"], found[0]["snapshot_digest"]) == ("failed", None)
    kept = rig.snapshots.report(str(found[0]["gate_report_id"]))
    assert kept["edits"][0]["reason"] == report.edits[0].reason
    assert rig.debts("result")[0]["reason"] == "the target is not the argmax"


def test_an_edit_that_is_not_claimed_cannot_be_rejected(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    lease = rig.acquire()
    before = rig.contents()
    with pytest.raises(IllegalTransition):
        rig.queue.reject(lease, {edit_id: "no"}, report=failing_report([edit_id]))
    assert rig.contents() == before


@pytest.mark.parametrize("end", ["rejected", "dead", "reverted"])
def test_a_correction_that_did_not_get_in_supersedes_nothing(rig: StoreRig, end: str) -> None:
    earlier = rig.correct("a", fact="France", target="Nice", minute=1)
    same = rig.correct("b", fact="France", target="Lyon", minute=2)
    later = rig.correct("c", fact="France", target="Lyon", minute=3)
    lease = rig.acquire()
    rig.claim(lease)
    assert rig.status(earlier) == "superseded"
    if end == "rejected":
        rig.queue.reject(lease, {later: "no"}, report=failing_report([later]))
    elif end == "dead":
        rig.queue.release(lease, [later], reason="ranks died", max_attempts=1)
    else:
        rig.queue.release(lease, [later], reason="ranks died", max_attempts=9)
        rig.review.request_revert(LINEAGE, [later], actor="cli:tester", reason="a mistake")
    assert rig.status(later) == end
    assert (rig.status(earlier), rig.edit(earlier)["superseded_by"]) == ("received", None)
    assert rig.status(same) == "superseded", "it asked for what was just refused"
    rig.make_due()
    batch = rig.claim(lease)
    assert batch is not None
    assert [edit.edit_id for edit in batch.edits] == [earlier]


def test_edits_are_read_in_the_order_asked(rig: StoreRig) -> None:
    first, second = rig.correct("a"), rig.correct("b")
    assert [edit.edit_id for edit in rig.queue.edits(LINEAGE, [second, first])] == [second, first]
    with pytest.raises(UnknownRecord, match="nonsense"):
        rig.queue.edits(LINEAGE, [first, "nonsense"])


def test_siblings_are_the_newest_active_edits_about_the_subjects_of_what_comes_or_goes(rig: StoreRig) -> None:
    of_france = [make_request(f"f{n}", subject="FRANCE" if n % 2 else "France") for n in range(SIBLINGS + 2)]
    others = [make_request("peru", subject="Peru"), make_request("none"), make_request("queued", subject="France")]
    lease = rig.acquire()
    held = [edit_id for request in (*of_france, *others[:2]) for edit_id in rig.submit(request)]
    rig.commit_batch(lease)
    [queued] = rig.submit(others[2])
    newest = held[2 : SIBLINGS + 2]

    def found(*changed: str, limit: int = 32) -> list[str]:
        return [edit.edit_id for edit in rig.queue.siblings(LINEAGE, changed, limit=limit)]

    assert found(queued) == newest, "of one subject, however it is written, only so many"
    assert found(queued, newest[-1]) == held[1 : SIBLINGS + 1], "none of what comes or goes"
    assert found(queued, limit=3) == newest[-3:]
    assert found(held[-2], held[-1]) == found() == [], "the only one of its subject; one without a subject"
    assert found(newest[0], queued, held[-2]) == [held[1], *newest[1:]]
