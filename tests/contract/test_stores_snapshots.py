"""Snapshots: one transaction each, no fork, no gap, and how each is put together again."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.logins import Login
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.domain.errors import IntegrityBroken, InvalidInput, LeaseLost, UnknownLineage, UnknownRecord
from pipeline.domain.lineages import TrainedArtifacts
from pipeline.domain.rank_api import EditorIdentity, FileRef
from pipeline.domain.review.approvals import Decision
from pipeline.domain.snapshots import Basis, DigestPath, Snapshot, chained_digest, snapshot_digest
from tests.support.store_rig import LINEAGE, StoreRig, failing_report


def file_of(rig: StoreRig, snapshot: Snapshot) -> FileRef:
    return FileRef(path=str(rig.artifacts.path(snapshot.delta)), digest=snapshot.delta.digest)


def test_a_commit_moves_the_head_and_binds_the_report(rig: StoreRig) -> None:
    edit_id = rig.correct("r1")
    lease = rig.acquire()
    batch = rig.claim(lease)
    assert batch is not None
    new = rig.new_snapshot(batch=batch)
    snapshot = rig.snapshots.commit(lease, new)
    lineage = rig.lineage()
    assert (lineage.head_id, lineage.head_seq, lineage.champion_id) == (snapshot.snapshot_id, 1, None)
    assert (snapshot.seq, snapshot.parent_id, snapshot.status) == (1, None, "candidate")
    assert (snapshot.digest, snapshot.delta, snapshot.accumulator) == (new.digest, new.delta, None)
    report = rig.query("SELECT snapshot_digest, verdict FROM gate_reports")[0]
    assert (report["snapshot_digest"], report["verdict"]) == (new.digest, "passed")
    assert rig.snapshots.report(snapshot.gate_report_id)["verdict"] == "passed"
    assert rig.status(edit_id) == "snapshotted"
    assert rig.actions(edit_id) == ["edit:received", "edit:claimed", "edit:snapshotted"]
    assert rig.actions(snapshot.snapshot_id) == ["snapshot:created"]
    assert [debt["snapshot_id"] for debt in rig.debts("register")] == [snapshot.snapshot_id]
    assert rig.audit.verify(LINEAGE) is None


def test_seq_has_no_gaps_and_every_snapshot_stands_on_the_one_before(rig: StoreRig) -> None:
    lease = rig.acquire()
    made = []
    for number in range(4):
        rig.correct(f"r{number}")
        made.append(rig.commit_batch(lease))
    assert [snapshot.seq for snapshot in made] == [1, 2, 3, 4]
    assert [snapshot.parent_id for snapshot in made] == [None, *(snapshot.snapshot_id for snapshot in made[:-1])]
    assert rig.snapshots.snapshots(LINEAGE) == tuple(made)


def test_the_active_set_is_the_parents_with_the_batch_and_without_what_it_displaced(rig: StoreRig) -> None:
    lease = rig.acquire()
    stays, goes = rig.correct("a"), rig.correct("b", fact="France", target="Nice", minute=1)
    first = rig.commit_batch(lease)
    comes = rig.correct("c", fact="France", target="Lyon", minute=2)
    second = rig.commit_batch(lease)
    assert rig.active(first.snapshot_id) == {stays, goes}
    assert rig.active(second.snapshot_id) == {stays, comes}
    assert list(rig.active_since(second.snapshot_id).items()) == [(stays, 1), (comes, 2)]
    assert (first.num_active, second.num_active) == (2, 2)


def test_an_edit_that_was_not_accepted_displaces_nothing(rig: StoreRig) -> None:
    lease = rig.acquire()
    old = rig.correct("a", fact="France", target="Nice", minute=1)
    rig.commit_batch(lease)
    new, other = rig.correct("b", fact="France", target="Lyon", minute=2), rig.correct("c")
    batch = rig.claim(lease)
    assert batch is not None
    snapshot = rig.snapshots.commit(lease, rig.new_snapshot(batch=batch, accepted=[other]))
    rig.queue.reject(lease, {new: "no"}, report=failing_report([new]))
    assert rig.active(snapshot.snapshot_id) == {old, other}
    assert (rig.status(old), rig.status(new)) == ("snapshotted", "rejected")


def test_there_is_no_fork(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a")
    rig.commit_batch(lease)
    rig.correct("b")
    batch = rig.claim(lease)
    assert batch is not None
    before = rig.contents()
    with pytest.raises(LeaseLost, match="expected the head"):
        rig.snapshots.commit(lease, rig.new_snapshot(batch=replace(batch, parent_id=None)))
    assert rig.contents() == before


def test_the_same_commit_twice_is_refused_the_second_time(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a")
    batch = rig.claim(lease)
    assert batch is not None
    new = rig.new_snapshot(batch=batch)
    rig.snapshots.commit(lease, new)
    with pytest.raises(LeaseLost):
        rig.snapshots.commit(lease, new)
    assert len(rig.snapshots.snapshots(LINEAGE)) == 1


def test_a_failing_report_makes_no_snapshot(rig: StoreRig) -> None:
    lease = rig.acquire()
    edit_id = rig.correct("a")
    batch = rig.claim(lease)
    assert batch is not None
    before = rig.contents()
    with pytest.raises(InvalidInput, match="passing report"):
        rig.snapshots.commit(lease, replace(rig.new_snapshot(batch=batch), report=failing_report([edit_id])))
    assert rig.contents() == before


def test_a_commit_rings_while_more_waits(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a", minute=1)
    rig.correct("b", minute=2)
    before = len(rig.debts("doorbell"))
    rig.commit_batch(lease, limit=1)
    assert len(rig.debts("doorbell")) == before + 1
    rig.commit_batch(lease, limit=1)
    assert len(rig.debts("doorbell")) == before + 1
    assert rig.debts("doorbell")[-1] == {"lineage": LINEAGE, "base_digest": "b" * 64}


def test_the_base_is_loaded_from_nothing(rig: StoreRig) -> None:
    plan = rig.snapshots.load_plan(LINEAGE, snapshot_id=None)
    settings = rig.lineage().settings
    assert (plan.digest, plan.accumulator, plan.deltas, plan.ledger) == (settings.base.digest, None, (), None)
    assert (plan.base, plan.editor) == (settings.base, settings.editor)
    ledger = rig.snapshots.ledger_plan(LINEAGE, snapshot_id=None)
    assert (ledger.rows, ledger.prior.digest, ledger.reference.digest, ledger.trained) == (
        *((), settings.prior.digest),
        *(settings.reference.digest, None),
    )


def test_a_lineage_keeps_its_trained_editor_and_the_ranks_are_given_its_files(rig: StoreRig) -> None:
    trained = TrainedArtifacts(name="mend", card=rig.file("card"), tensors=rig.file("editor"))
    settings = rig.lineage().settings
    editor = replace(settings.editor, transform="e" * 64)
    made = rig.lineages.create(replace(settings, name="trained", editor=editor, trained=trained), actor="cli:tester")
    assert rig.lineages.lineage("trained").settings.trained == trained
    assert made.settings.editor_identity == EditorIdentity(solver="recursive", transform="mend", digest="e" * 64)
    assert rig.snapshots.load_plan("trained", snapshot_id=None).editor == editor
    plan = rig.snapshots.ledger_plan("trained", snapshot_id=None)
    assert plan.trained is not None
    assert plan.trained.name == "mend"
    assert (plan.trained.card.digest, plan.trained.tensors.digest) == (trained.card.digest, trained.tensors.digest)
    assert Path(plan.trained.tensors.path).read_bytes()
    assert str(settings.editor_identity) == "gradient (untrained)"
    Path(plan.trained.card.path).write_bytes(b"changed")
    with pytest.raises(IntegrityBroken):
        rig.snapshots.ledger_plan("trained", snapshot_id=None)


def test_a_snapshot_is_loaded_from_the_nearest_accumulators_and_the_deltas_above(rig: StoreRig) -> None:
    lease = rig.acquire()
    made = []
    for number in range(5):
        rig.correct(f"r{number}")
        made.append(rig.commit_batch(lease, with_accumulator=number == 2))
    below, stored, above = made[1], made[2], made[4]
    plan = rig.snapshots.load_plan(LINEAGE, snapshot_id=below.snapshot_id)
    assert (plan.accumulator, plan.deltas) == (None, (file_of(rig, made[0]), file_of(rig, made[1])))
    plan = rig.snapshots.load_plan(LINEAGE, snapshot_id=stored.snapshot_id)
    assert stored.accumulator is not None
    assert plan.accumulator is not None
    assert (plan.accumulator.digest, plan.deltas) == (stored.accumulator.digest, ())
    plan = rig.snapshots.load_plan(LINEAGE, snapshot_id=above.snapshot_id)
    assert plan.accumulator is not None
    assert plan.accumulator.digest == stored.accumulator.digest
    assert plan.deltas == (file_of(rig, made[3]), file_of(rig, made[4]))
    assert plan.digest == above.digest
    digests = tuple(snapshot.delta.digest for snapshot in made)
    path = rig.snapshots.digest_path(LINEAGE, above.snapshot_id)
    assert path == DigestPath(start=made[1].digest, listed=(), chained=digests[2:])
    assert path.digest == above.digest
    path = rig.snapshots.digest_path(LINEAGE, below.snapshot_id)
    assert (path.start, path.chained, path.digest) == ("b" * 64, digests[:2], below.digest)


def test_the_digest_of_a_snapshot_over_those_of_before_counts_their_deltas_from_the_base(rig: StoreRig) -> None:
    lease = rig.acquire()
    made = []
    for number in range(3):
        rig.correct(f"r{number}")
        made.append(rig.commit_batch(lease, with_accumulator=number == 1))
    digests = [snapshot.delta.digest for snapshot in made]
    for seq in (1, 2):  # as 0004 leaves what it finds
        old = snapshot_digest(base_digest="b" * 64, delta_digests=digests[:seq])
        rig.query("UPDATE snapshots SET digest = %s, digest_form = 'list' WHERE seq = %s", old, seq)
    rig.query("UPDATE snapshots SET digest = %s WHERE seq = 3", chained_digest(old, digests[2]))
    path = rig.snapshots.digest_path(LINEAGE, made[2].snapshot_id)
    assert path == DigestPath(start="b" * 64, listed=tuple(digests[:2]), chained=(digests[2],))
    assert path.digest == rig.snapshots.snapshot(LINEAGE, "3").digest
    path = rig.snapshots.digest_path(LINEAGE, made[1].snapshot_id)
    assert (path.listed, path.chained, path.digest) == (tuple(digests[:2]), (), old)


def test_a_rebuild_starts_a_new_row_of_deltas(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a")
    rig.commit_batch(lease)
    rig.correct("b")
    batch = rig.claim(lease)
    assert batch is not None
    new = replace(rig.new_snapshot(batch=batch, with_accumulator=True), basis=Basis.base)
    rebuilt = rig.snapshots.commit(lease, new)
    rig.correct("c")
    above = rig.commit_batch(lease)
    path = rig.snapshots.digest_path(LINEAGE, above.snapshot_id)
    assert path.chained == (rebuilt.delta.digest, above.delta.digest)
    assert path.digest == above.digest
    plan = rig.snapshots.load_plan(LINEAGE, snapshot_id=above.snapshot_id)
    assert plan.accumulator is not None
    assert (len(plan.deltas), plan.deltas[0]) == (1, file_of(rig, above))


def test_the_ledger_holds_every_active_edit_once_grouped_by_the_snapshot_that_brought_it(rig: StoreRig) -> None:
    lease = rig.acquire()
    first = {rig.correct("a", minute=1), rig.correct("b", minute=2)}
    rig.commit_batch(lease)
    second = rig.correct("c", minute=3)
    gone = rig.correct("d", fact="France", target="Nice", minute=4)
    rig.commit_batch(lease)
    third = rig.correct("e", fact="France", target="Lyon", minute=5)
    head = rig.commit_batch(lease)
    plan = rig.snapshots.ledger_plan(LINEAGE, snapshot_id=head.snapshot_id)
    assert [set(rows.edit_ids) for rows in plan.rows] == [first, {second}, {third}]
    assert len({rows.file.path for rows in plan.rows}) == 3
    assert gone not in {edit_id for rows in plan.rows for edit_id in rows.edit_ids}


def test_rows_that_were_written_again_are_read_from_their_new_file_in_the_same_order(rig: StoreRig) -> None:
    lease = rig.acquire()
    first = rig.correct("a", minute=1)
    gone = rig.correct("b", fact="France", target="Nice", minute=2)
    below = rig.commit_batch(lease)
    second = rig.correct("c", minute=3)
    rig.commit_batch(lease)
    third = rig.correct("d", fact="France", target="Lyon", minute=4)
    batch = rig.claim(lease)
    assert batch is not None
    new = replace(rig.new_snapshot(batch=batch, with_accumulator=True), rewritten_ids=(first, gone, second))
    head = rig.snapshots.commit(lease, new)
    [run] = rig.snapshots.ledger_plan(LINEAGE, snapshot_id=head.snapshot_id).rows
    assert (run.edit_ids, run.file.digest) == ((first, second, third), new.rows.digest)
    old = rig.snapshots.ledger_plan(LINEAGE, snapshot_id=below.snapshot_id).rows
    assert [rows.edit_ids for rows in old] == [(first,), (gone,)], "what had left stays where it was"
    assert [rows.file.digest == new.rows.digest for rows in old] == [True, False]


def test_an_edit_that_is_made_again_stays_where_it_was_and_its_rows_come_after_those_of_before(rig: StoreRig) -> None:
    lease = rig.acquire()
    first, second = rig.correct("a", minute=1), rig.correct("b", minute=2)
    below = rig.commit_batch(lease)
    third = rig.correct("c", minute=3)
    new = replace(rig.new_snapshot(batch=rig.claim(lease)), remade_ids=(first,))
    head = rig.snapshots.commit(lease, new)
    plan = rig.snapshots.ledger_plan(LINEAGE, snapshot_id=head.snapshot_id).rows
    assert [rows.edit_ids for rows in plan] == [(second,), (first, third)]
    assert [rows.file.digest == new.rows.digest for rows in plan] == [False, True]
    assert rig.active_since(head.snapshot_id) == {second: 1, first: 1, third: 2}
    assert rig.active(below.snapshot_id) == {first, second}
    assert head.num_active == 3
    assert _created(rig, head)["remade"] == [first]
    assert "remade" not in _created(rig, below)
    rig.correct("d", minute=4)
    above = rig.commit_batch(lease)
    assert list(rig.active_since(above.snapshot_id)) == [second, first, third, rig.edit_id("d")]


def test_a_person_is_told_what_was_made_again(rig: StoreRig) -> None:
    lease = rig.acquire()
    first = rig.correct("a", minute=1)
    rig.commit_batch(lease)
    rig.correct("b", minute=2)
    new = rig.new_snapshot(batch=rig.claim(lease))
    report = replace(new.report, measurements=replace(new.report.measurements, remade=(first,)))
    head = rig.snapshots.commit(lease, replace(new, report=report, remade_ids=(first,)))
    assert rig.mirror.entry(head.snapshot_id).around.remade == ("a: The capital of a is Canberra",)


def test_rejecting_a_snapshot_takes_out_what_it_brought_and_leaves_what_it_made_again(rig: StoreRig) -> None:
    lease = rig.acquire()
    first = rig.correct("a", minute=1)
    below = rig.commit_batch(lease)
    second = rig.correct("b", minute=2)
    above = rig.snapshots.commit(lease, replace(rig.new_snapshot(batch=rig.claim(lease)), remade_ids=(first,)))
    assert rig.decide(above, Decision.rejected).is_accepted
    removal = rig.queue.next_removal(lease)
    assert removal is not None
    assert removal.edit_ids == (second,)
    back = rig.snapshots.commit(
        lease, replace(rig.new_snapshot(removal=removal, parent_id=above.snapshot_id), remade_ids=(first,))
    )
    assert (rig.active(back.snapshot_id), rig.status(second)) == ({first}, "rejected")
    assert rig.decide(below, Decision.rejected).is_accepted
    removal = rig.queue.next_removal(lease)
    assert removal is not None
    assert removal.edit_ids == (first,)


def _created(rig: StoreRig, snapshot: Snapshot) -> dict[str, Any]:
    """What the audit line of a snapshot's commit says."""
    [event] = [event for event in rig.audit.events(LINEAGE, limit=1000) if event.subject == snapshot.snapshot_id]
    told: dict[str, Any] = json.loads(event.payload)
    return told


def test_a_snapshot_is_found_by_id_by_seq_and_by_its_role(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a")
    snapshot = rig.commit_batch(lease)
    for ref in (snapshot.snapshot_id, "1", "head"):
        assert rig.snapshots.snapshot(LINEAGE, ref) == snapshot


@pytest.mark.parametrize("ref", ["champion", "2", "", "nonsense", "²", "9" * 30, str(uuid.UUID(int=7))])
def test_a_snapshot_that_does_not_exist_is_unknown(rig: StoreRig, ref: str) -> None:
    rig.correct("a")
    rig.commit_batch(rig.acquire())
    with pytest.raises(UnknownRecord):
        rig.snapshots.snapshot(LINEAGE, ref)


def test_a_snapshot_of_another_lineage_is_not_loaded(rig: StoreRig) -> None:
    rig.correct("a")
    snapshot = rig.commit_batch(rig.acquire())
    rig.new_lineage("others")
    with pytest.raises(UnknownRecord, match="another lineage"):
        rig.snapshots.load_plan("others", snapshot_id=snapshot.snapshot_id)
    with pytest.raises(UnknownRecord, match="another lineage"):
        rig.snapshots.ledger_plan("others", snapshot_id=snapshot.snapshot_id)
    with pytest.raises(UnknownLineage):
        rig.snapshots.load_plan("nobody", snapshot_id=None)
    with pytest.raises(UnknownRecord):
        rig.snapshots.digest_path(LINEAGE, str(uuid.UUID(int=7)))
    with pytest.raises(UnknownRecord):
        rig.snapshots.ledger_plan(LINEAGE, snapshot_id="not-a-uuid")
    with pytest.raises(UnknownRecord):
        rig.snapshots.report("nonsense")


def test_the_configurations_of_a_base_of_before_are_recorded_once_with_one_line(rig: StoreRig) -> None:
    for config_digest in ("1" * 64, "2" * 64):
        SqlLineageStore(rig.engines[Login.editor]).bind_base(LINEAGE, config_digest)
    found = rig.lineage()
    assert found.settings.base.config_digest == "1" * 64
    assert rig.snapshots.load_plan(LINEAGE, snapshot_id=None).base.config_digest == "1" * 64
    assert rig.actions(found.lineage_id).count("lineage:base_bound") == 1
