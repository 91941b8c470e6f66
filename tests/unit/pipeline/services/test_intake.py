"""The use case of intake: what it does when a service is away or a partition is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from pipeline.domain.contract.messages import Message, PartitionClaim, PartitionKey, Poll, PollCounts
from pipeline.domain.errors import EpochStale, Unavailable
from pipeline.services.intake import Fetched, Intake

PLACE = PartitionKey(cluster_id="c", topic_id="t", topic="requests", partition=0)
CLAIM = PartitionClaim(partition=PLACE, epoch=1, next_offset=0)
CORRECTION = {
    "request_id": "r1",
    "lineage": "facts",
    "prompt": "The capital of Australia is",
    "target_new": "Canberra",
    "occurred_at": "2026-06-01T12:00:00Z",
}


class ScriptedSource:
    """Plays polls, or raises errors in their place; then it is empty."""

    def __init__(self, *script: Sequence[bytes] | Exception) -> None:
        self.script = list(script)
        self.committed: list[int] = []
        self.num_stepped_back = 0

    def poll(self) -> tuple[Fetched, ...]:
        """The next part of the script."""
        part = self.script.pop(0) if self.script else ()
        if isinstance(part, Exception):
            raise part
        messages = tuple(
            Message(partition=PLACE, offset=offset, key=None, value=value) for offset, value in enumerate(part)
        )
        return (Fetched(claim=CLAIM, messages=messages, next_offset=len(messages)),) if messages else ()

    def commit(self, fetched: Sequence[Fetched]) -> None:
        """Remembers the offset."""
        self.committed += [part.next_offset for part in fetched]

    def step_back(self) -> None:
        """Remembers that it was called."""
        self.num_stepped_back += 1


class ScriptedStore:
    """Raises the errors of the script, then records."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.tried: list[Sequence[Poll]] = []

    def take_partition(self, partition: PartitionKey) -> PartitionClaim:
        """Always the first epoch."""
        return CLAIM

    def record(self, polls: Sequence[Poll]) -> PollCounts:
        """Counts what it is given."""
        self.tried.append(polls)
        if self.errors:
            raise self.errors.pop(0)
        parsed = [one for poll in polls for one in poll.messages]
        refused = sum(one.refusal is not None for one in parsed)
        return PollCounts(received=len(parsed) - refused, refused=refused)


def test_a_poll_is_recorded_and_then_committed() -> None:
    source, store = ScriptedSource([json.dumps(CORRECTION).encode(), b"bad"]), ScriptedStore()
    assert Intake(source=source, store=store).run_once() == PollCounts(received=1, refused=1)
    assert source.committed == [2]


def test_an_empty_poll_asks_nothing_of_the_store() -> None:
    source, store = ScriptedSource(), ScriptedStore()
    assert Intake(source=source, store=store).run_once() == PollCounts()
    assert store.tried == []


def test_an_unavailable_store_gets_the_same_poll_again() -> None:
    source = ScriptedSource([b"bad"])
    store = ScriptedStore(Unavailable("away"), Unavailable("away"))
    assert Intake(source=source, store=store).run_once() == PollCounts(refused=1)
    assert len(store.tried) == 3
    assert store.tried[0] == store.tried[1] == store.tried[2]
    assert source.committed == [1]


def test_a_service_that_is_away_is_told_once_however_often_it_is_tried() -> None:
    store = ScriptedStore(*(Unavailable("the database is away") for _ in range(3)))
    with capture_logs() as lines:
        Intake(source=ScriptedSource([b"bad"]), store=store).run_once()
    told = [line for line in lines if line["log_level"] == "warning"]
    assert [line["error"] for line in told] == ["the database is away"]


def test_an_unavailable_broker_is_asked_again() -> None:
    source = ScriptedSource(Unavailable("away"), [b"bad"])
    assert Intake(source=source, store=ScriptedStore()).run_once() == PollCounts(refused=1)


def test_intake_gives_up_after_its_time_and_commits_nothing() -> None:
    source = ScriptedSource([b"bad"])
    store = ScriptedStore(*(Unavailable("away") for _ in range(1_000)))
    intake = Intake(source=source, store=store, give_up_after=timedelta(seconds=0.5))
    with pytest.raises(Unavailable, match="away"):
        intake.run_once()
    assert len(store.tried) > 1
    assert source.committed == []


def test_a_stale_epoch_commits_nothing_and_gives_the_partitions_up() -> None:
    source = ScriptedSource([b"bad"])
    store = ScriptedStore(EpochStale("expected epoch 1, got 2"))
    assert Intake(source=source, store=store).run_once() == PollCounts()
    assert source.num_stepped_back == 1
    assert source.committed == []
    assert len(store.tried) == 1


def test_a_stop_ends_the_waiting_for_a_service_that_is_away() -> None:
    asked = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    source = ScriptedSource(*(Unavailable("away") for _ in range(1_000)))
    Intake(source=source, store=ScriptedStore()).run(should_stop)
    assert len(source.script) > 900
