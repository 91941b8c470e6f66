"""A producer that writes messages to topics and waits for each acknowledgement."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from kafka import KafkaProducer

from pipeline.adapters.kafka.connection import CONNECT_TIMEOUT_MS, REQUEST_TIMEOUT_MS, broker_errors, opened
from pipeline.config import Settings
from pipeline.domain.errors import Unavailable
from pipeline.services.accepting import Place

MAX_REQUEST_BYTES = 1_048_576
"""The broker's own default; a larger message is refused before it is sent."""
LIMIT_SECONDS = 25.0
"""How long the acknowledgement of what one call sends may take, by default."""
CLOSE_SECONDS = 2.0


class KafkaPublisher:
    """A producer that is connected by the first message and made anew after an error.

    The producer is idempotent: what its retries send twice is in the log once. After an error it is thrown away,
    because one that a broker no longer knows never recovers. Threads may share it: they take turns.

    Args:
        settings: name the broker.
        patience: seconds that a thread waits for its turn, and for which a broker that was away is taken to be away
            still. None to wait as long as it takes, and to try anew with each message.
        limit: seconds within which everything that one call sends has to be acknowledged, connecting included.
    """

    def __init__(self, settings: Settings, *, patience: float | None = None, limit: float = LIMIT_SECONDS) -> None:
        self._settings = settings
        self._patience = patience
        self._limit = limit
        self._away: tuple[float, Unavailable] | None = None
        self._producer: Any = None
        self._lock = threading.RLock()

    def publish(self, topic: str, *, key: str, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Send and wait for the acknowledgement of all replicas.

        Raises:
            InvalidInput: if the message is too large.
            Unavailable: if the broker does not acknowledge; it may have the message all the same.
            Misconfigured: if the broker refuses us.
        """
        with self._turn() as deadline:
            future = self._connected().send(topic, value=value, key=key.encode(), headers=list(headers))
            future.get(timeout=_left(deadline))

    def publish_all(
        self, topic: str, messages: Sequence[tuple[str, bytes]], *, headers: Sequence[tuple[str, bytes]] = ()
    ) -> Sequence[Place]:
        """Send messages, each with its key, wait until all replicas acknowledged all of them, and say where they lie.

        Raises:
            InvalidInput, Misconfigured: as `publish`.
            Unavailable: if the broker does not acknowledge; it may have some of them.
        """
        with self._turn() as deadline:
            producer = self._connected()
            futures = [
                producer.send(topic, value=value, key=key.encode(), headers=list(headers)) for key, value in messages
            ]
            written = [future.get(timeout=_left(deadline)) for future in futures]
            return [Place(topic=one.topic, partition=one.partition, offset=one.offset) for one in written]

    def close(self) -> None:
        """Leave the broker; a later message connects again."""
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=min(CLOSE_SECONDS, self._limit / 10))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @contextmanager
    def _turn(self) -> Iterator[float]:
        """Take a turn, and give the moment by which everything has to be acknowledged."""
        if not self._lock.acquire(timeout=-1 if self._patience is None else self._patience):
            raise Unavailable(
                f"expected a turn at the Kafka broker at {self._settings.kafka_bootstrap} within {self._patience} s, "
                "got none: it is slow to acknowledge what others send"
            )
        try:
            with broker_errors(self._settings):
                yield time.monotonic() + self._limit
        except BaseException:
            self.close()
            raise
        finally:
            self._lock.release()

    def _connected(self) -> Any:
        if self._producer is not None:
            return self._producer
        # Of many threads that found the broker away, one at a time finds out whether it is back.
        if self._away is not None and time.monotonic() < self._away[0]:
            raise Unavailable(str(self._away[1]))
        # Four fifths for the delivery, so that the library says itself what was wrong; half for what goes before it.
        delivery_ms, half_ms = int(800 * self._limit), int(500 * self._limit)
        try:
            self._producer = opened(
                KafkaProducer,
                self._settings,
                enable_idempotence=True,
                acks="all",
                allow_auto_create_topics=False,
                max_request_size=MAX_REQUEST_BYTES,
                bootstrap_timeout_ms=min(CONNECT_TIMEOUT_MS, half_ms),
                max_block_ms=min(REQUEST_TIMEOUT_MS, half_ms),
                request_timeout_ms=min(REQUEST_TIMEOUT_MS, delivery_ms),
                delivery_timeout_ms=delivery_ms,
            )
        except Unavailable as error:
            self._away = time.monotonic() + (self._patience or 0.0), error
            raise
        return self._producer


def _left(deadline: float) -> float:
    """Return the seconds that are left until a moment."""
    return max(0.0, deadline - time.monotonic())
