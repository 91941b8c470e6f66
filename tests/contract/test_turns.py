"""Lineages of one base take turns on a worker."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipeline.services.editing import EditPolicy, EditService
from tests.support.factories import make_request
from tests.support.fake_editor import FakeEditorGroup
from tests.support.store_rig import LINEAGE, MAX_ATTEMPTS, TTL, StoreRig

BUSY = "busy"


def worked(rig: StoreRig, lineage: str, *, batches_per_turn: int) -> int:
    """What a worker makes that hears one doorbell."""
    return EditService(
        leases=rig.leases,
        lineages=rig.lineages,
        queue=rig.queue,
        snapshots=rig.snapshots,
        artifacts=rig.artifacts,
        group=FakeEditorGroup(),
        policy=EditPolicy(
            owner="worker:turns",
            lease_ttl=TTL,
            batch_max_wait=timedelta(),
            max_attempts=MAX_ATTEMPTS,
            batches_per_turn=batches_per_turn,
        ),
    ).run(lineage)


@pytest.fixture
def busy(rig: StoreRig) -> StoreRig:
    """A rig with a second lineage of the same base, in whose queue lie five batches of one edit."""
    rig.new_lineage(BUSY, batch_size=1)
    for number in range(5):
        rig.submit(make_request(f"b{number}", lineage=BUSY))
    return rig


def test_a_busy_lineage_makes_way_for_another_one_and_rings_again(busy: StoreRig) -> None:
    busy.correct("waits")
    before = len(busy.debts("doorbell"))
    assert worked(busy, BUSY, batches_per_turn=2) == 2
    rung = busy.query("SELECT dedup_key FROM outbox WHERE kind = 'doorbell' ORDER BY outbox_id")[before:]
    assert f"doorbell:{BUSY}:released:1" in [row["dedup_key"] for row in rung]
    assert busy.debts("doorbell")[-1] == {"lineage": BUSY, "base_digest": "b" * 64}
    assert sorted(busy.leases.waiting()) == [BUSY, LINEAGE], "the lease is free for whoever hears the bell"

    assert worked(busy, LINEAGE, batches_per_turn=2) == 1
    assert worked(busy, BUSY, batches_per_turn=2) == 3, "nobody waits any more"
    assert busy.lineages.counts(BUSY) == {"snapshotted": 5}


def test_a_lineage_works_on_while_nobody_else_of_its_base_waits(busy: StoreRig) -> None:
    busy.correct("of another base")
    busy.query("UPDATE lineages SET base_digest = %s WHERE name = %s", "c" * 64, LINEAGE)
    assert not busy.leases.others_wait(BUSY)
    assert worked(busy, BUSY, batches_per_turn=2) == 5


def test_a_lineage_that_is_held_or_leased_does_not_wait(busy: StoreRig) -> None:
    assert not busy.leases.others_wait(BUSY), "it has no work"
    busy.correct("waits")
    assert busy.leases.others_wait(BUSY)
    busy.lineages.hold(LINEAGE, reason="asked to", actor="cli:tester")
    assert not busy.leases.others_wait(BUSY)
    busy.lineages.resume(LINEAGE, actor="cli:tester")
    busy.acquire()
    assert not busy.leases.others_wait(BUSY)
