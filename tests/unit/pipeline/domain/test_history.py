"""Lifecycle table, audit chain, digests and decisions."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.domain.audit import GENESIS_HASH, AuditAction, AuditEvent, event_hash, first_break
from pipeline.domain.errors import IllegalTransition, InvalidInput
from pipeline.domain.formats.canonical import canonical_json
from pipeline.domain.lifecycle import (
    EDIT_TRANSITIONS,
    SNAPSHOT_TRANSITIONS,
    EditStatus,
    SnapshotStatus,
    edit_action,
    snapshot_action,
)
from pipeline.domain.review.approvals import Approval, Channel, Decision, Standing, refusal
from pipeline.domain.snapshots import Basis, DigestPath, chained_digest, snapshot_digest, stores_accumulator

START = datetime(2026, 1, 1, tzinfo=UTC)


def chain_of(length: int) -> list[AuditEvent]:
    events: list[AuditEvent] = []
    prev_hash = GENESIS_HASH
    for seq in range(1, length + 1):
        fields = {
            "chain": "facts",
            "seq": seq,
            "at": START + timedelta(microseconds=seq),
            "actor": "intake",
            "action": AuditAction.edit_received,
            "subject": f"edit-{seq}",
            "payload": canonical_json({"number": seq}),
            "prev_hash": prev_hash,
        }
        prev_hash = event_hash(**fields)  # type: ignore[arg-type]
        events.append(AuditEvent(**fields, hash=prev_hash))  # type: ignore[arg-type]
    return events


def test_an_untouched_chain_verifies() -> None:
    assert first_break(chain_of(5)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "somebody"},
        {"action": AuditAction.edit_reverted},
        {"subject": "edit-9"},
        {"payload": '{"number":9}'},
        {"payload": "not json"},
        {"at": START},
        {"hash": "f" * 64},
    ],
)
def test_a_changed_line_is_named_by_its_seq(change: dict[str, object]) -> None:
    events = chain_of(5)
    events[2] = replace(events[2], **change)  # type: ignore[arg-type]
    broken = first_break(events)
    assert broken is not None
    assert broken.seq == 3


def test_a_deleted_line_is_named_by_its_seq() -> None:
    events = chain_of(5)
    del events[2]
    broken = first_break(events)
    assert broken is not None
    assert broken.seq == 3


def test_a_rewritten_line_with_a_right_hash_breaks_the_next_one() -> None:
    events = chain_of(5)
    fields = {name: getattr(events[2], name) for name in AuditEvent.__slots__ if name != "hash"} | {"actor": "x"}
    events[2] = AuditEvent(**fields, hash=event_hash(**fields))
    broken = first_break(events)
    assert broken is not None
    assert broken.seq == 4


def test_moves_outside_the_table_are_refused() -> None:
    for before, after in itertools.product([None, *EditStatus], EditStatus):
        if (before, after) in EDIT_TRANSITIONS:
            assert edit_action(before, after) is EDIT_TRANSITIONS[before, after]
        else:
            with pytest.raises(IllegalTransition):
                edit_action(before, after)
    for was, becomes in itertools.product([None, *SnapshotStatus], SnapshotStatus):
        if (was, becomes) not in SNAPSHOT_TRANSITIONS:
            with pytest.raises(IllegalTransition):
                snapshot_action(was, becomes)


def test_every_edit_status_can_be_reached() -> None:
    assert {after for _, after in EDIT_TRANSITIONS} == set(EditStatus)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, {"a": object()}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        canonical_json(value)


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "é"]}) == canonical_json(json.loads('{"a": [1, "é"], "b": 1.0}'))


def test_a_snapshot_digest_depends_on_base_deltas_and_their_order() -> None:
    digests = {
        snapshot_digest(base_digest="a", delta_digests=["b", "c"]),
        snapshot_digest(base_digest="a", delta_digests=["c", "b"]),
        snapshot_digest(base_digest="x", delta_digests=["b", "c"]),
        snapshot_digest(base_digest="a", delta_digests=["b"]),
    }
    assert len(digests) == 4


def test_a_chained_digest_depends_on_all_that_is_below_it() -> None:
    digests = {
        DigestPath(start="a", listed=(), chained=("b", "c")).digest,
        DigestPath(start="a", listed=(), chained=("c", "b")).digest,
        DigestPath(start="x", listed=(), chained=("b", "c")).digest,
        DigestPath(start="a", listed=(), chained=("b",)).digest,
        DigestPath(start="a", listed=("b", "c"), chained=()).digest,
    }
    assert len(digests) == 5
    assert DigestPath(start="a", listed=(), chained=("b", "c")).digest == chained_digest(chained_digest("a", "b"), "c")


def test_a_path_over_snapshots_of_before_begins_with_the_list_of_their_deltas() -> None:
    old = snapshot_digest(base_digest="a", delta_digests=["b", "c"])
    path = DigestPath(start="a", listed=("b", "c"), chained=("d",))
    assert path.digest == chained_digest(old, "d")
    assert path.ends_with(["c", "d"])
    assert path.ends_with([])
    assert not path.ends_with(["b", "d"])
    assert not path.ends_with(["x", "b", "c", "d"])


def test_loading_never_replays_more_than_31_deltas() -> None:
    gaps, since = [], 0
    for seq in range(1, 200):
        since = 0 if stores_accumulator(seq=seq, basis=Basis.parent) else since + 1
        gaps.append(since)
    assert max(gaps) == 31


APPROVAL = Approval(
    lineage="facts",
    snapshot_id="s2",
    snapshot_digest="d2",
    champion_seen="s1",
    decision=Decision.approved,
    actor="cli:ada",
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


def test_a_candidate_ahead_of_the_champion_can_be_approved() -> None:
    assert refusal(APPROVAL, STANDING) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"digest": "other"}, "digest"),
        ({"champion_id": "s9"}, "champion has moved"),
        ({"status": SnapshotStatus.retired}, "retired"),
        ({"gate_passed": False}, "gate report"),
        ({"lineage_policy_digest": "q"}, "policy"),
        ({"seq": 1}, "behind"),
    ],
)
def test_an_approval_is_refused_with_the_reason(change: dict[str, object], word: str) -> None:
    found = refusal(APPROVAL, replace(STANDING, **change))  # type: ignore[arg-type]
    assert found is not None
    assert word in found


def test_what_an_approved_snapshot_stands_on_cannot_be_rejected() -> None:
    found = refusal(replace(APPROVAL, decision=Decision.rejected), replace(STANDING, is_under_approved=True))
    assert found is not None
    assert "revert" in found


def test_what_takes_a_rejected_ledger_out_can_be_approved_and_not_rejected() -> None:
    standing = replace(STANDING, takes_out=1)
    assert refusal(APPROVAL, standing) is None
    found = refusal(replace(APPROVAL, decision=Decision.rejected), standing)
    assert found is not None
    assert "the ledger of snapshot 1" in found


def test_only_an_approved_ancestor_can_be_rolled_back_to() -> None:
    back = replace(APPROVAL, decision=Decision.rolled_back)
    assert refusal(back, replace(STANDING, status=SnapshotStatus.approved, champion_seq=5)) is None
    assert refusal(back, replace(STANDING, status=SnapshotStatus.candidate, champion_seq=5)) is not None
    assert refusal(back, replace(STANDING, status=SnapshotStatus.approved, champion_seq=2)) is not None
