"""A person gives dead edits another try: all their attempts again, one line each, and a bell."""

from __future__ import annotations

import json

import pytest

from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.domain.errors import UnknownLineage, UnknownRecord
from pipeline.services import retrying
from pipeline.services.retrying import Retrier
from tests.support.edit_parts import assert_audited, work_here
from tests.support.store_rig import LINEAGE, StoreRig


def killed(rig: StoreRig, *request_ids: str, reason: str = "CUDA out of memory") -> list[str]:
    """Edits that died, each of them alone."""
    edit_ids = [rig.correct(request_id, minute=minute) for minute, request_id in enumerate(request_ids)]
    lease = rig.acquire()
    while batch := rig.claim(lease, limit=1):
        claimed = [edit.edit_id for edit in batch.edits]
        rig.queue.release(lease, claimed, reason=f"EngineFailed: {reason}", max_attempts=1)
    rig.leases.release(lease)
    assert {rig.status(edit_id) for edit_id in edit_ids} == {"dead"}
    return edit_ids


def retrier(rig: StoreRig) -> Retrier:
    return Retrier(review=rig.review, history=SqlHistoryStore(rig.engine))


def test_a_dead_edit_is_tried_again_with_all_its_attempts(rig: StoreRig) -> None:
    [edit_id] = killed(rig, "a")
    bells = len(rig.debts("doorbell"))
    done = retrier(rig).retry(LINEAGE, ["a"], actor="cli:anna", reason="a larger device")
    assert (done.edit_ids, done.left) == ((edit_id,), {})
    edit = rig.edit(edit_id)
    assert (edit["status"], edit["attempts"]) == ("received", 0)
    line = [event for event in rig.audit.events(LINEAGE) if event.subject == edit_id][-1]
    told = json.loads(line.payload)
    assert (line.action, line.actor) == ("edit:released", "cli:anna")
    assert (told["from"], told["to"], told["attempts"]) == ("dead", "received", 0)
    assert told["reason"] == "asked to be tried again: a larger device"
    assert rig.debts("doorbell")[bells:] == [{"lineage": LINEAGE, "base_digest": "b" * 64}]
    rig.make_due()
    work_here(rig)
    assert rig.status(edit_id) == "snapshotted"
    assert_audited(rig)


def test_asking_twice_is_the_same_as_asking_once(rig: StoreRig) -> None:
    edit_ids = killed(rig, "a", "b")
    first = retrier(rig).retry(LINEAGE, ["a", edit_ids[0], "b"], actor="cli:anna")
    assert sorted(first.edit_ids) == edit_ids
    before = rig.contents()
    again = retrier(rig).retry(LINEAGE, edit_ids, actor="cli:anna")
    assert (again.edit_ids, again.left) == ((), dict.fromkeys(edit_ids, "received"))
    assert retrier(rig).retry_all(LINEAGE, actor="cli:anna").edit_ids == ()
    assert rig.contents() == before


def test_only_what_died_of_one_thing_is_tried_again(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "TOGETHER", 2)  # more edits than one transaction takes
    of_memory = killed(rig, "a", "b", "c")
    of_time = killed(rig, "d", reason="expected an answer within 600 s, got none: 100% _busy_")
    assert retrier(rig).retry_all(LINEAGE, because="% _BUSY", actor="cli:anna").edit_ids == tuple(of_time)
    assert {rig.status(edit_id) for edit_id in of_memory} == {"dead"}
    assert retrier(rig).retry_all(LINEAGE, because="nobody died of this", actor="cli:anna").edit_ids == ()
    assert sorted(retrier(rig).retry_all(LINEAGE, actor="cli:anna").edit_ids) == sorted(of_memory)
    assert_audited(rig)


def test_what_is_not_dead_is_left_as_it_is(rig: StoreRig) -> None:
    rig.correct("active")
    work_here(rig)
    [dead] = killed(rig, "a")
    done = retrier(rig).retry(LINEAGE, ["active", "a"], actor="cli:anna")
    assert done.edit_ids == (dead,)
    assert done.left == {rig.edit_id("active"): "snapshotted"}


def test_one_unknown_edit_retries_none(rig: StoreRig) -> None:
    [edit_id] = killed(rig, "a")
    with pytest.raises(UnknownRecord, match="nonsense"):
        retrier(rig).retry(LINEAGE, ["a", "nonsense"], actor="cli:anna")
    with pytest.raises(UnknownLineage):
        retrier(rig).retry_all("nothing-of-ours", actor="cli:anna")
    assert rig.status(edit_id) == "dead"


def test_a_correction_that_came_after_the_death_holds_against_the_one_that_is_tried_again(rig: StoreRig) -> None:
    [earlier] = killed(rig, "a")
    later = rig.correct("b", fact="a", target="Lyon", minute=30)
    work_here(rig)
    retrier(rig).retry(LINEAGE, ["a"], actor="cli:anna")
    rig.make_due()
    work_here(rig)
    assert (rig.status(later), rig.status(earlier)) == ("snapshotted", "superseded")
    assert_audited(rig)
