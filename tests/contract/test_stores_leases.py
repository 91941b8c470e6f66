"""Leases: one owner at a time, an epoch that only grows, and an old owner who can write nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from pipeline.domain.errors import LeaseLost, UnknownLineage
from pipeline.domain.lineages import Lease, Removal
from tests.support.store_rig import LINEAGE, MAX_ATTEMPTS, TTL, StoreRig, failing_report

Write = Callable[[StoreRig, Lease], object]


def test_a_lease_is_refused_while_somebody_else_holds_it(rig: StoreRig) -> None:
    rig.acquire("worker:a")
    assert rig.leases.acquire(LINEAGE, owner="worker:b", ttl=TTL, max_attempts=MAX_ATTEMPTS) is None


def test_the_epoch_grows_with_every_acquire_also_after_a_release(rig: StoreRig) -> None:
    first = rig.acquire("worker:a")
    rig.leases.release(first)
    second = rig.acquire("worker:b")
    again = rig.acquire("worker:b")
    assert (first.epoch, second.epoch, again.epoch) == (1, 2, 3)


def test_of_many_that_ask_at_once_one_gets_the_lease(rig: StoreRig) -> None:
    def ask(number: int) -> Lease | None:
        return rig.leases.acquire(LINEAGE, owner=f"worker:{number}", ttl=TTL, max_attempts=MAX_ATTEMPTS)

    with ThreadPoolExecutor(max_workers=8) as pool:
        leases = list(pool.map(ask, range(8)))
    assert len([lease for lease in leases if lease]) == 1


def test_an_unknown_lineage_has_no_lease(rig: StoreRig) -> None:
    with pytest.raises(UnknownLineage, match="nothing-of-ours"):
        rig.leases.acquire("nothing-of-ours", owner="worker:a", ttl=TTL, max_attempts=MAX_ATTEMPTS)


def test_renewing_moves_the_end_in_database_time(rig: StoreRig) -> None:
    lease = rig.leases.acquire(LINEAGE, owner="worker:a", ttl=timedelta(seconds=5), max_attempts=MAX_ATTEMPTS)
    assert lease is not None
    renewed = rig.leases.renew(lease, ttl=timedelta(hours=1))
    assert renewed.epoch == lease.epoch
    assert timedelta(minutes=59) < renewed.expires_at - rig.now() <= timedelta(hours=1)


def test_an_expired_lease_cannot_be_renewed_even_if_nobody_took_it(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.expire_lease()
    with pytest.raises(LeaseLost):
        rig.leases.renew(lease, ttl=TTL)


def test_releasing_a_lost_lease_leaves_the_new_owner_alone(rig: StoreRig) -> None:
    old = rig.acquire("worker:a")
    rig.expire_lease()
    new = rig.acquire("worker:b")
    rig.leases.release(old)
    assert rig.leases.renew(new, ttl=TTL).epoch == new.epoch


def test_a_takeover_puts_claimed_edits_back_and_is_audited(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    assert rig.claim(rig.acquire("worker:a")) is not None
    rig.expire_lease()
    new = rig.acquire("worker:b")
    edit = rig.edit(edit_id)
    assert (edit["status"], edit["attempts"]) == ("received", 1)
    assert "lost its lease" in edit["reason"]
    assert edit["next_attempt_at"] > rig.now() - timedelta(seconds=5)
    assert rig.actions(edit_id) == ["edit:received", "edit:claimed", "edit:released"]
    taken = [event for event in rig.audit.events(LINEAGE) if event.action == "lease:taken"]
    assert [event.actor for event in taken] == [new.owner]
    batch = rig.query("SELECT outcome, finished_at FROM edit_batches JOIN batch_edits USING (batch_id)")
    assert batch[0]["outcome"] == "undecided"
    assert batch[0]["finished_at"] is not None


def test_an_edit_whose_workers_all_died_is_dead_and_what_had_made_way_for_it_is_back(rig: StoreRig) -> None:
    earlier = rig.correct("a", fact="France", target="Nice", minute=1)
    killer = rig.correct("b", fact="France", target="Lyon", minute=2)
    for attempt in range(MAX_ATTEMPTS):
        lease = rig.acquire(f"worker:{attempt}")
        rig.make_due()
        if attempt == 1:
            bystander = rig.correct("c", minute=3)
        assert rig.claim(lease) is not None
        rig.expire_lease()
    rig.acquire("worker:last")
    edit = rig.edit(killer)
    assert (edit["status"], edit["attempts"]) == ("dead", MAX_ATTEMPTS)
    assert "lost its lease" in edit["reason"]
    assert rig.actions(killer)[-2:] == ["edit:claimed", "edit:died"]
    assert [debt["edit_id"] for debt in rig.debts("result") if debt["status"] == "dead"] == [killer]
    assert (rig.status(earlier), rig.status(bystander)) == ("received", "received")
    assert rig.audit.verify(LINEAGE) is None


def test_taking_a_lease_that_was_given_back_is_no_takeover(rig: StoreRig) -> None:
    rig.leases.release(rig.acquire("worker:a"))
    rig.acquire("worker:b")
    assert "lease:taken" not in [event.action for event in rig.audit.events(LINEAGE)]


def test_a_lineage_waits_only_while_it_has_work_that_nobody_has(rig: StoreRig) -> None:
    assert rig.leases.waiting() == ()
    rig.correct("r1")
    assert rig.leases.waiting() == (LINEAGE,)
    lease = rig.acquire()
    assert rig.leases.waiting() == ()
    snapshot = rig.commit_batch(lease)
    rig.leases.release(lease)
    assert rig.leases.waiting() == ()
    rig.correct("r2")
    rig.lineages.hold(LINEAGE, reason="wait", actor="cli:tester")
    assert rig.leases.waiting() == ()
    rig.review.request_revert(LINEAGE, sorted(rig.active(snapshot.snapshot_id)), actor="cli:tester", reason="wrong")
    assert rig.leases.waiting() == (LINEAGE,), "a removal is due also while the lineage is held"


def test_edits_that_a_dead_worker_left_claimed_are_work(rig: StoreRig) -> None:
    rig.correct("r1")
    rig.claim(rig.acquire())
    rig.expire_lease()
    assert rig.leases.waiting() == (LINEAGE,)


def _commit(rig: StoreRig, lease: Lease) -> object:
    head_id = rig.lineage().head_id
    removal = Removal(
        removal_id=str(rig.query("SELECT removal_id FROM removals")[0]["removal_id"]),
        lineage=LINEAGE,
        edit_ids=(rig.edit_id("r1"),),
        reinstated_ids=(),
        rejected_snapshot_id=None,
        actor="cli:tester",
        reason="wrong",
    )
    return rig.snapshots.commit(lease, rig.new_snapshot(removal=removal, parent_id=head_id))


def _fail_removal(rig: StoreRig, lease: Lease) -> object:
    removal = Removal(
        removal_id=str(rig.query("SELECT removal_id FROM removals")[0]["removal_id"]),
        lineage=LINEAGE,
        edit_ids=(rig.edit_id("r1"),),
        reinstated_ids=(),
        rejected_snapshot_id=None,
        actor="cli:tester",
        reason="wrong",
    )
    return rig.queue.fail_removal(lease, removal, reason="late", report=None)


def _put_off_removal(rig: StoreRig, lease: Lease) -> object:
    removal = Removal(
        removal_id=str(rig.query("SELECT removal_id FROM removals")[0]["removal_id"]),
        lineage=LINEAGE,
        edit_ids=(rig.edit_id("r1"),),
        reinstated_ids=(),
        rejected_snapshot_id=None,
        actor="cli:tester",
        reason="wrong",
    )
    return rig.queue.put_off_removal(lease, removal, reason="late", is_attempt=True)


def _reject(rig: StoreRig, lease: Lease) -> object:
    edit_id = rig.edit_id("r2")
    return rig.queue.reject(lease, {edit_id: "late"}, report=failing_report([edit_id]))


WRITES: dict[str, Write] = {
    "renew": lambda rig, lease: rig.leases.renew(lease, ttl=TTL),
    "claim": lambda rig, lease: rig.claim(lease),
    "release": lambda rig, lease: rig.queue.release(lease, [rig.edit_id("r2")], reason="late", max_attempts=3),
    "reject": _reject,
    "next_removal": lambda rig, lease: rig.queue.next_removal(lease),
    "fail_removal": _fail_removal,
    "put_off_removal": _put_off_removal,
    "commit": _commit,
}


@pytest.mark.parametrize("loss", ["expired", "taken", "taken and claimed again"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_of_an_old_owner_fails_and_leaves_nothing(rig: StoreRig, write: Write, loss: str) -> None:
    rig.correct("r1")
    old = rig.acquire("worker:old")
    rig.commit_batch(old)
    rig.correct("r2")
    assert rig.claim(old) is not None
    rig.review.request_revert(LINEAGE, [rig.edit_id("r1")], actor="cli:tester", reason="wrong")
    rig.expire_lease()
    if loss != "expired":
        new = rig.acquire("worker:new")
        rig.make_due()
        if loss == "taken and claimed again":
            assert rig.claim(new) is not None
    before = rig.contents()
    with pytest.raises(LeaseLost) as caught:
        write(rig, old)
    assert caught.value.ids["lineage"] == LINEAGE
    assert rig.contents() == before
