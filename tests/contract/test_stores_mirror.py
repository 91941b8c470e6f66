"""What the registry has to show."""

from __future__ import annotations

import uuid

import pytest

from pipeline.domain.approvals import Decision
from pipeline.domain.errors import UnknownLineage, UnknownRecord
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
