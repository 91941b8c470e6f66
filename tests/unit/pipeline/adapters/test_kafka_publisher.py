"""Threads that share a producer while the broker is away: none of them is kept for long."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

from pipeline.adapters.kafka import publisher
from pipeline.adapters.kafka.publisher import KafkaPublisher
from pipeline.config import Settings
from pipeline.domain.errors import Unavailable


class AbsentBroker:
    """Stands in for `opened`: says that a connect has begun, and fails it when it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.num_tries = 0

    def __call__(self, *_: object, **__: object) -> None:
        self.num_tries += 1
        self.begun.set()
        self.let_go.wait()
        raise Unavailable("the Kafka broker does not answer")


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> AbsentBroker:
    made = AbsentBroker()
    monkeypatch.setattr(publisher, "opened", made)
    return made


def send(publisher: KafkaPublisher) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        publisher.publish_all("requests", [("facts", b"{}")])


def test_who_cannot_have_a_turn_is_told_so_while_another_connects(broker: AbsentBroker) -> None:
    shared = KafkaPublisher(Settings(kafka_bootstrap="broker:9092"), patience=0.01)
    first = threading.Thread(target=send, args=(shared,), daemon=True)
    first.start()
    broker.begun.wait()
    with pytest.raises(Unavailable, match=r"expected a turn at the Kafka broker at broker:9092"):
        shared.publish_all("requests", [("facts", b"{}")])
    broker.let_go.set()
    first.join()
    assert broker.num_tries == 1


@pytest.mark.parametrize(("patience", "num_tries"), [(3600.0, 1), (None, 2)])
def test_a_broker_that_was_away_is_away_for_the_next_ones_too_if_they_are_impatient(
    broker: AbsentBroker, patience: float | None, num_tries: int
) -> None:
    broker.let_go.set()
    shared = KafkaPublisher(Settings(kafka_bootstrap="broker:9092"), patience=patience)
    send(shared)
    send(shared)
    assert broker.num_tries == num_tries


class SilentBroker:
    """Stands in for `opened`: a producer whose broker takes messages and acknowledges none."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.asked_for: list[float] = []
        self.num_closed = 0

    def __call__(self, *_: object, **options: Any) -> SilentBroker:
        self.options = options
        return self

    def send(self, *_: object, **__: object) -> SilentBroker:
        return self

    def get(self, timeout: float) -> None:
        self.asked_for.append(timeout)
        raise KafkaTimeoutError("nothing was acknowledged")

    def close(self, timeout: float) -> None:
        self.num_closed += 1


def test_a_broker_that_acknowledges_nothing_holds_nobody_for_longer_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = SilentBroker()
    monkeypatch.setattr(publisher, "opened", broker)
    shared = KafkaPublisher(Settings(kafka_bootstrap="broker:9092"), patience=1.0, limit=4.0)
    send(shared)
    assert broker.asked_for[0] <= 4
    assert broker.num_closed == 1, "a producer after an error is thrown away"
    # Kafka's own rule, and that the library ends before we do.
    assert broker.options["request_timeout_ms"] <= broker.options["delivery_timeout_ms"] < 4_000
    assert broker.options["bootstrap_timeout_ms"] + broker.options["max_block_ms"] <= 4_000
