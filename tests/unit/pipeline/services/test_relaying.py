"""What the relay does with items, and what is announced of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.domain.contract.messages import DeadLetter, PartitionKey
from pipeline.domain.errors import InvalidMessage, LoginRefused, Misconfigured, Unavailable, UnknownRecord
from pipeline.domain.lineages import Lineage
from pipeline.services import claim_keeping, relaying
from pipeline.services.announcing import EXCERPT_BYTES, MAX_WHOLE_BYTES, Announcer
from pipeline.services.claim_keeping import ClaimKeeper
from pipeline.services.ports import CLAIM, POSTPONED, OutboxItem
from pipeline.services.relaying import OutboxRelay
from pipeline.services.submission import submit
from tests.support.registry_entries import BASE_DIGEST, lineage
from tests.support.waiting import eventually

LETTER = DeadLetter(
    dead_letter_id="letter-1",
    partition=PartitionKey(cluster_id="c", topic_id="t", topic="requests", partition=3),
    offset=41,
    key=b"facts",
    value=b"{bad",
    error="expected JSON, got none: \u2026",
    created_at=datetime(2026, 6, 1, tzinfo=UTC),
    replayed_at=None,
)


class ListOutbox:
    """Items in a list, each handed out once."""

    def __init__(self, *items: OutboxItem) -> None:
        self.items = list(items)
        self.finished: list[str] = []
        self.notes = 0
        self.errors: dict[str, str] = {}
        self.waiting: dict[str, str] = {}
        self.released: list[str] = []
        self.renewed: list[str] = []

    def due(self, kind: str | None = None, *, limit: int = 100) -> tuple[OutboxItem, ...]:
        """Those of the kind."""
        found = tuple(one for one in self.items if kind in (None, one.kind))
        self.items = [one for one in self.items if one not in found]
        return found

    def renew(self, items: Sequence[OutboxItem]) -> frozenset[str]:
        """All but those that somebody took away."""
        self.renewed += [one.outbox_id for one in items]
        return frozenset(one.outbox_id for one in items if not one.payload.get("is_taken"))

    def release(self, items: Sequence[OutboxItem]) -> None:
        """Remembers them."""
        self.released += [one.outbox_id for one in items]

    def done(self, outbox_ids: Sequence[str]) -> None:
        """Remembers them."""
        self.notes += 1
        self.finished += outbox_ids

    def postponed(self, item: OutboxItem, *, error: str, wait: timedelta = POSTPONED) -> None:
        """Remembers why."""
        self.waiting[item.outbox_id] = error

    def failed(self, item: OutboxItem, *, error: str) -> bool:
        """Remembers why."""
        self.errors[item.outbox_id] = error
        return False


class Recorder:
    """A doorbell and a publisher that remember, and the few records an announcer reads."""

    def __init__(self, letter: DeadLetter = LETTER) -> None:
        self.letter = letter
        self.rung: list[tuple[str, str]] = []
        self.published: list[tuple[str, str, bytes | None, dict[str, bytes]]] = []

    def ring(self, lineage: str, *, base_digest: str) -> None:
        """Remembers it."""
        self.rung.append((lineage, base_digest))

    def publish(self, topic: str, *, key: str, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Remembers it."""
        self.published.append((topic, key, value, dict(headers)))

    def lineage(self, name: str) -> Lineage:
        """One of that name."""
        return lineage(name)

    def snapshot_seq(self, edit_id: str) -> int | None:
        """Of any edit."""
        return 7

    def dead_letter(self, dead_letter_id: str) -> DeadLetter:
        """The one there is."""
        if dead_letter_id != self.letter.dead_letter_id:
            raise UnknownRecord(f"expected a dead letter, got {dead_letter_id}")
        return self.letter

    def announcer(self) -> Announcer:
        """One that speaks through this."""
        return Announcer(
            doorbell=self,
            publisher=self,
            lineages=self,  # type: ignore[arg-type]
            history=self,  # type: ignore[arg-type]
            dead_letters=self,
            results_topic="results",
            dead_letter_topic="dlq",
        )


def item(outbox_id: str, kind: str = "doorbell", **payload: Any) -> OutboxItem:
    """Something owed."""
    return OutboxItem(
        outbox_id=outbox_id, kind=kind, dedup_key=f"{kind}:{outbox_id}", payload=payload, attempts=0, claim="c"
    )


def test_an_item_that_fails_is_recorded_and_the_others_go_on() -> None:
    def handle(one: OutboxItem) -> None:
        if one.outbox_id == "2":
            raise Unavailable("Redis is away", kind="doorbell", event="anything")
        if one.outbox_id == "3":
            raise KeyError("lineage")
        if one.outbox_id == "4":
            raise Misconfigured("a person must act")
        if one.outbox_id == "5":
            raise LoginRefused("Redis does not accept the password")

    outbox = ListOutbox(*(item(str(n)) for n in range(1, 7)))
    assert OutboxRelay(outbox=outbox, handlers={"doorbell": handle}).run_once("doorbell") == 2
    assert outbox.finished == ["1", "6"]
    away = {"2": "Redis is away", "5": "Redis does not accept the password"}
    assert outbox.waiting == away, "a service that is away, or closed to us, is no failure of the item"
    assert outbox.errors == {"3": "KeyError: 'lineage'", "4": "a person must act"}


def test_an_item_of_a_kind_that_nobody_handles_stays_owed() -> None:
    outbox = ListOutbox(item("1", "unheard-of"), item("2"))
    relay = OutboxRelay(outbox=outbox, handlers={"doorbell": lambda one: None})
    assert sum(relay.run_once(kind) for kind in relay.kinds) == 1
    assert [one.outbox_id for one in outbox.items] == ["1"]


def test_a_service_that_keeps_us_waiting_is_asked_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1_000, 10))
    monkeypatch.setattr("pipeline.services.relaying.time.monotonic", lambda: float(next(clock)))
    asked = []

    def handle(one: OutboxItem) -> None:
        asked.append(one.outbox_id)
        raise Unavailable("the broker is away")

    outbox = ListOutbox(item("1", "result"), item("2", "result"), item("3"))
    relay = OutboxRelay(outbox=outbox, handlers={"result": handle, "doorbell": lambda one: None})
    relay.run_once("result")
    assert asked == ["1"]
    assert (outbox.waiting, outbox.released) == ({"1": "the broker is away"}, ["2"])
    relay.run_once("doorbell")
    assert outbox.finished == ["3"], "another kind does not wait for it"


def test_claims_are_renewed_as_long_as_an_item_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_keeping, "CLAIM", timedelta(seconds=0.03))
    outbox = ListOutbox(item("1", "register"), item("2", "register"))

    def slow(one: OutboxItem) -> None:
        eventually(lambda: outbox.renewed.count("2") > 9, "renewals far beyond the first claim")
        outbox.renewed.clear()

    assert OutboxRelay(outbox=outbox, handlers={"register": slow}).run_once("register") == 2


def test_a_claim_that_somebody_else_took_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_keeping, "CLAIM", timedelta(seconds=0.03))
    outbox = ListOutbox(item("1", "result"), item("2", "result", is_taken=True), item("3", "result"))
    handled: list[str] = []

    def handle(one: OutboxItem) -> None:
        handled.append(one.outbox_id)
        eventually(lambda: outbox.renewed, "a renewal")

    OutboxRelay(outbox=outbox, handlers={"result": handle}).run_once("result")
    assert handled == ["1"]


def test_a_relay_that_was_stopped_beyond_its_claims_does_nothing_more_with_them() -> None:
    class Away(ListOutbox):
        def renew(self, items: Sequence[OutboxItem]) -> frozenset[str]:
            raise Unavailable("the database is away")

    outbox = Away(item("1"), item("2"))
    keeper = ClaimKeeper(outbox, outbox.items, asked_at=time.monotonic() - CLAIM.total_seconds())
    assert not keeper.holds(outbox.items[0])


def test_a_relay_that_is_told_to_stop_gives_back_what_it_has_not_begun() -> None:
    outbox, handled = ListOutbox(item("1"), item("2"), item("3")), list[OutboxItem]()
    relay = OutboxRelay(outbox=outbox, handlers={"doorbell": handled.append})
    assert relay.run_once("doorbell", should_stop=lambda: bool(handled)) == 1
    assert (outbox.finished, outbox.released) == (["1"], ["2", "3"])


def test_goals_of_a_moment_are_noted_at_once_and_none_is_forgotten_when_the_service_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def handle(one: OutboxItem) -> None:
        if one.outbox_id == "150":
            raise KeyboardInterrupt

    outbox = ListOutbox(*(item(str(n)) for n in range(151)))
    monkeypatch.setattr(relaying, "MOMENT", timedelta(minutes=1))
    with pytest.raises(KeyboardInterrupt):
        OutboxRelay(outbox=outbox, handlers={"doorbell": handle}).run_once("doorbell")
    assert (len(outbox.finished), outbox.notes) == (150, 1)


def test_a_doorbell_names_the_base_or_finds_it() -> None:
    recorder = Recorder()
    ring = recorder.announcer().handlers()["doorbell"]
    ring(item("1", lineage="facts", base_digest="abc"))
    ring(item("2", lineage="facts"))
    assert recorder.rung == [("facts", "abc"), ("facts", BASE_DIGEST)]


def test_a_result_says_what_became_of_a_correction() -> None:
    recorder = Recorder()
    payload = {
        "edit_id": "e1",
        "request_id": "r1",
        "lineage": "facts",
        "status": "snapshotted",
        "reason": None,
        "at": "2026-06-01T12:00:00+00:00",
    }
    recorder.announcer().handlers()["result"](item("1", "result", **payload))
    ((topic, key, value, _),) = recorder.published
    assert (topic, key) == ("results", "facts")
    assert json.loads(value or b"") == {
        "version": 1,
        "request_id": "r1",
        "lineage": "facts",
        "status": "snapshotted",
        "reason": None,
        "snapshot_seq": 7,
        "at": "2026-06-01T12:00:00Z",
    }


def test_a_dead_letter_carries_reason_and_origin() -> None:
    recorder = Recorder()
    recorder.announcer().handlers()["dead_letter"](item("1", "dead_letter", dead_letter_id="letter-1"))
    ((topic, key, value, headers),) = recorder.published
    assert (topic, key, value) == ("dlq", "facts", b"{bad")
    assert headers["reason"].decode() == LETTER.error
    assert headers["origin_topic"] == b"requests"
    assert headers["origin_partition"] == b"3"
    assert headers["origin_offset"] == b"41"
    assert headers["origin_cluster"] == b"c"
    assert headers["dead_letter_id"] == b"letter-1"
    assert headers["is_whole"] == b"true"


@pytest.mark.parametrize(
    ("value", "num_bytes", "is_whole"),
    [
        (b"a" * MAX_WHOLE_BYTES, MAX_WHOLE_BYTES, b"true"),
        (b"a" * (MAX_WHOLE_BYTES + 1), EXCERPT_BYTES, b"false"),
        (b"a" * 10_000_000, EXCERPT_BYTES, b"false"),
        (None, 0, b"true"),
    ],
)
def test_a_dead_letter_that_is_too_large_is_cut(value: bytes | None, num_bytes: int, is_whole: bytes) -> None:
    recorder = Recorder(replace(LETTER, value=value, key=b"\xff" * 5_000))
    recorder.announcer().handlers()["dead_letter"](item("1", "dead_letter", dead_letter_id="letter-1"))
    ((_, key, sent, headers),) = recorder.published
    assert len(sent or b"") == num_bytes
    assert headers["is_whole"] == is_whole
    assert headers["value_bytes"] == str(len(value or b"")).encode()
    assert len(key) <= 1_000


def test_a_submission_is_checked_before_it_is_sent_and_keyed_by_its_lineage() -> None:
    recorder = Recorder()
    document = {
        "request_id": "r1",
        "lineage": "facts",
        "prompt": "The capital of Australia is",
        "target_new": "Canberra",
        "occurred_at": "2026-06-01T12:00:00Z",
    }
    assert submit(recorder, "requests", document).request_id == "r1"
    ((topic, key, value, _),) = recorder.published
    assert (topic, key, json.loads(value or b"")) == ("requests", "facts", document)
    for wrong in ({"prompt": ""}, {"prompt": "a\x00"}, {"prompt": "\ud800"}, {"prompt": float("nan")}, {"x": object()}):
        with pytest.raises(InvalidMessage):
            submit(recorder, "requests", document | wrong)
    assert len(recorder.published) == 1


def test_relays_of_a_process_ask_once_in_a_moment_which_kinds_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask() -> frozenset[str]:
        asked.append("asked")
        return frozenset({"result"})

    due = relaying.DueKinds(ask)
    assert [due.include(kind) for kind in ("doorbell", "result", "register")] == [False, True, False]
    assert len(asked) == 1
    monkeypatch.setattr(relaying, "GLANCE", timedelta(seconds=-1))
    assert due.include("result")
    assert len(asked) == 2


def test_an_outbox_that_is_away_is_asked_again_by_the_next_relay() -> None:
    answers: list[frozenset[str] | Exception] = [Unavailable("away"), frozenset({"result"})]

    def ask() -> frozenset[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    due = relaying.DueKinds(ask)
    with pytest.raises(Unavailable):
        due.include("result")
    assert due.include("result")
