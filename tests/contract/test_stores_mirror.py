"""What the registry has to show."""

from __future__ import annotations

import json
import uuid

import pytest

from pipeline.domain.errors import UnknownLineage, UnknownRecord
from pipeline.domain.review.approvals import Decision
from pipeline.services.registry.registry_ports import Displaced
from tests.support.store_rig import LINEAGE, StoreRig


def test_an_entry_holds_everything_of_its_snapshot(rig: StoreRig) -> None:
    lease = rig.acquire()
    first = rig.correct("a")
    snapshot = rig.commit_batch(lease)
    second = rig.correct("b")
    head = rig.commit_batch(lease)
    entry = rig.mirror.entry(snapshot.snapshot_id)
    assert entry.snapshot == snapshot
    assert entry.plan == rig.snapshots.load_plan(LINEAGE, snapshot_id=snapshot.snapshot_id)
    assert entry.report == rig.snapshots.report(snapshot.gate_report_id)
    assert [edit.edit_id for edit in entry.edits] == [first]
    assert entry.digest_path.digest == snapshot.digest
    assert [edit.edit_id for edit in rig.mirror.entry(head.snapshot_id).edits] == [second], "only what it brought"
    assert entry.lineage == rig.lineage()
    assert entry.audit_head == rig.audit.head(LINEAGE)
    with pytest.raises(UnknownRecord):
        rig.mirror.entry(str(uuid.UUID(int=7)))


def test_an_entry_says_what_goes_live_with_it_what_leaves_and_how_the_lineage_went(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a", fact="one")
    live = rig.commit_batch(lease)
    assert rig.mirror.entry(live.snapshot_id).around.num_waiting == 0
    rig.decide(live, Decision.approved)
    rig.correct("b", fact="two")
    below = rig.commit_batch(lease)
    rig.mirror.registered(below.snapshot_id, version="2")
    newest = rig.correct("c", fact="one", target="Perth", minute=5)
    around = rig.mirror.entry(rig.commit_batch(lease).snapshot_id).around
    [waiting] = around.waiting
    assert (waiting.seq, waiting.version, waiting.num_edits, len(waiting.edits)) == (2, "2", 1, 1)
    assert (around.num_waiting, around.num_waiting_edits) == (1, 1)
    assert [one.partition(":")[0] for one in around.gone] == ["a"]
    assert [point.seq for point in around.trend] == [1, 2, 3]
    assert around.trend[-1].values["edit_success"] == 1.0
    assert around.origins == {newest: "requests, partition 0, offset 2"}


def test_a_version_is_recorded_once_and_the_first_one_stays(rig: StoreRig) -> None:
    rig.correct("a")
    snapshot = rig.commit_batch(rig.acquire())
    for version in ("1", "1", "2"):
        rig.mirror.registered(snapshot.snapshot_id, version=version)
    assert rig.snapshots.snapshot(LINEAGE, "head").registry_version == "1"
    assert rig.actions(snapshot.snapshot_id) == ["snapshot:created", "snapshot:registered"]
    with pytest.raises(UnknownRecord):
        rig.mirror.registered("nonsense", version="1")


def test_the_alias_follows_the_champion_and_is_owed_until_the_outbox_says_done(rig: StoreRig) -> None:
    rig.correct("a")
    snapshot = rig.commit_batch(rig.acquire())
    rig.mirror.registered(snapshot.snapshot_id, version="7")
    before = rig.mirror.champion_mirror(LINEAGE)
    assert (before.version, before.snapshot_id, before.is_owed) == (None, None, False)
    rig.decide(snapshot, Decision.approved)
    owed = rig.mirror.champion_mirror(LINEAGE)
    assert (owed.version, owed.snapshot_id, owed.is_owed) == ("7", snapshot.snapshot_id, True)
    rig.query("UPDATE outbox SET done_at = clock_timestamp() WHERE kind = 'champion'")
    assert not rig.mirror.champion_mirror(LINEAGE).is_owed
    with pytest.raises(UnknownLineage):
        rig.mirror.champion_mirror("nobody")


def test_the_digest_of_a_versions_files_is_kept_before_there_is_a_version_and_not_changed_after(rig: StoreRig) -> None:
    rig.correct("a")
    snapshot_id = rig.commit_batch(rig.acquire()).snapshot_id
    for digest in ("1" * 64, "2" * 64):
        rig.mirror.seal(snapshot_id, digest)
    assert rig.mirror.entry(snapshot_id).snapshot.package_digest == "2" * 64
    rig.mirror.registered(snapshot_id, version="1")
    for wrong in (snapshot_id, "nonsense"):
        with pytest.raises(UnknownRecord):
            rig.mirror.seal(wrong, "3" * 64)
    line = rig.audit.events(LINEAGE)[-1]
    assert json.loads(line.payload) == {"version": "1", "package_digest": "2" * 64}


@pytest.mark.parametrize("is_champion", [True, False])
def test_a_version_that_is_gone_is_forgotten_and_owed_once(rig: StoreRig, is_champion: bool) -> None:
    rig.correct("a")
    snapshot = rig.commit_batch(rig.acquire())
    snapshot_id = snapshot.snapshot_id
    if is_champion:
        rig.decide(snapshot, Decision.approved)
    for time in (1, 2):
        rig.mirror.registered(snapshot_id, version="7")
        before = (len(rig.debts("register")), len(rig.debts("champion")))
        gone = [rig.mirror.unregistered(snapshot_id, version="7", actor="x", reason="deleted") for _ in range(2)]
        assert gone == [True, False]
        assert len(rig.debts("register")) == before[0] + 1
        assert len(rig.debts("champion")) == before[1] + is_champion
        action = "champion:missing" if is_champion else "snapshot:unregistered"
        assert rig.actions(snapshot_id).count(action) == time
    head = rig.snapshots.snapshot(LINEAGE, "head")
    assert (head.registry_version, head.package_digest) == (None, None)


def test_what_the_alias_may_be_is_kept_until_one_thing_is_written(rig: StoreRig) -> None:
    assert rig.mirror.champion_mirror(LINEAGE).written is None
    rig.mirror.pointing(LINEAGE, "1")
    assert rig.mirror.champion_mirror(LINEAGE).written is None, "nobody knows what it was before"
    rig.mirror.pointed(LINEAGE, "1")
    rig.mirror.pointing(LINEAGE, None)
    rig.mirror.pointing(LINEAGE, None)
    assert rig.mirror.champion_mirror(LINEAGE).written == (None, "1")
    rig.mirror.pointed(LINEAGE, None)
    assert rig.mirror.champion_mirror(LINEAGE).written == (None,)


def test_a_move_by_hand_is_audited_once_for_each_time_it_is_put_back(rig: StoreRig) -> None:
    for _ in range(2):
        moved = Displaced(found="2", back=None)
        rig.mirror.putting_back(LINEAGE, moved)
        assert rig.mirror.champion_mirror(LINEAGE).putting_back == moved
        for _ in range(2):
            rig.mirror.put_back(LINEAGE, moved, actor="reconciler")
    assert rig.mirror.champion_mirror(LINEAGE).putting_back is None
    assert rig.actions("base") == ["champion:restored"] * 2
