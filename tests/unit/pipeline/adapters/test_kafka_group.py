"""What one poll of a group's member waits for. The client library is replaced here: it decides when groups answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from kafka import ConsumerRebalanceListener, TopicPartition

from pipeline.adapters.kafka import source as source_module
from pipeline.adapters.kafka.source import KafkaSource
from pipeline.config import Settings

PLACE = TopicPartition("requests", 0)


class SlowGroup:
    """A consumer whose group answers in the poll of that number, counted from when it was asked."""

    def __init__(self, answers_in: int) -> None:
        self.num_polls = 0
        self._answers_in = answers_in
        self._listener: Any = None

    def subscribe(self, topics: list[str], listener: ConsumerRebalanceListener) -> None:
        self._listener = listener

    def unsubscribe(self) -> None:
        self._listener = None

    def poll(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        self.num_polls += 1
        if self.num_polls == self._answers_in:
            self._listener.on_partitions_assigned({PLACE})
        return {}

    def share_anew(self, taken_away: Collection[TopicPartition]) -> None:
        self.num_polls = 0
        self._listener.on_partitions_revoked(taken_away)

    def pause(self, place: TopicPartition) -> None: ...

    def seek(self, place: TopicPartition, offset: int) -> None: ...


@pytest.fixture
def group() -> SlowGroup:
    return SlowGroup(answers_in=3)


@pytest.fixture
def source(group: SlowGroup, monkeypatch: pytest.MonkeyPatch) -> KafkaSource:
    monkeypatch.setattr(source_module, "opened_consumer", lambda settings: group)
    monkeypatch.setattr(source_module, "TopicWatch", lambda settings, topic: None)
    return KafkaSource(Settings(intake_mode="group"), holds=None)  # type: ignore[arg-type]


def test_a_poll_goes_on_until_the_group_has_answered(source: KafkaSource, group: SlowGroup) -> None:
    assert source._polled() == {}
    assert group.num_polls == 3
    assert source._assignment.due(()) == (PLACE,)


def test_a_member_of_a_group_polls_once_from_then_on(source: KafkaSource, group: SlowGroup) -> None:
    source._polled()
    source._polled()
    assert group.num_polls == 4


def test_a_poll_waits_again_while_the_group_shares_anew(source: KafkaSource, group: SlowGroup) -> None:
    source._polled()
    group.share_anew({PLACE})
    source._polled()
    assert group.num_polls == 3
    assert source._assignment.due(()) == (PLACE,)


def test_a_poll_waits_after_the_group_was_left_and_joined_again(source: KafkaSource, group: SlowGroup) -> None:
    source._polled()
    group.num_polls = 0
    source._assignment.renew()
    source._polled()
    assert group.num_polls == 3


def test_a_group_that_does_not_answer_is_not_waited_for_without_end(
    source: KafkaSource, group: SlowGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "LONGEST_JOIN_SECONDS", 0)
    source._polled()
    assert group.num_polls == 1
    assert source._assignment.due(()) == ()
