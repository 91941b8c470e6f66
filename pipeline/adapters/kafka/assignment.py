"""Which partitions a consumer reads: all of the topic, or those that a group's coordinator gives.

Rebalance callbacks run on the client library's own thread, inside a poll. They only stop a partition from being read
and note that it must be claimed; the claiming happens before the next poll, on the caller's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from kafka import ConsumerRebalanceListener, TopicPartition


class AssignedByHand:
    """Every partition of the topic that no other process holds; nobody takes one away but by raising its epoch."""

    def __init__(self, consumer: Any, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic
        self._started: set[TopicPartition] = set()

    def due(self, partitions: Sequence[int]) -> tuple[TopicPartition, ...]:
        """Return the partitions to claim before they are read; `partitions` are all that the topic has."""
        places = [TopicPartition(self._topic, partition) for partition in partitions]
        return tuple(place for place in places if place not in self._started)

    def start(self, place: TopicPartition, offset: int) -> None:
        """Read a claimed partition from an offset on.

        Raises:
            ValueError: if it is not ours any more.
        """
        self._started.add(place)
        self._consumer.assign(sorted(self._started))  # the others keep their positions
        self._consumer.seek(place, offset)

    def lost(self) -> tuple[TopicPartition, ...]:
        """Return the partitions whose claim ended since the last call."""
        return ()

    def is_joining(self) -> bool:
        """Return whether a group has yet to say what is ours."""
        return False

    def forget(self) -> None:
        """Stop reading; every partition is due again."""
        self._started.clear()
        self._consumer.unsubscribe()

    def renew(self) -> None:
        """Ask anew which partitions are ours, after somebody else took one; by hand all are, and due already."""


class AssignedByGroup(AssignedByHand, ConsumerRebalanceListener):  # type: ignore[misc]
    """The partitions that the coordinator of a consumer group gives us."""

    def __init__(self, consumer: Any, topic: str) -> None:
        super().__init__(consumer, topic)
        self._lock = threading.Lock()
        self._due: set[TopicPartition] = set()
        self._lost: set[TopicPartition] = set()
        self._has_joined = threading.Event()
        self._consumer.subscribe([topic], listener=self)

    def due(self, partitions: Sequence[int]) -> tuple[TopicPartition, ...]:
        """Return what was assigned and is not started."""
        with self._lock:
            return tuple(sorted(self._due))

    def start(self, place: TopicPartition, offset: int) -> None:
        """Read on from an offset, no longer paused; see `AssignedByHand.start`."""
        with self._lock:
            self._due.discard(place)
            self._lost.discard(place)
        self._consumer.seek(place, offset)
        with suppress(KeyError):
            self._consumer.resume(place)

    def lost(self) -> tuple[TopicPartition, ...]:
        """Return what was taken away, or given anew, since the last call."""
        with self._lock:
            lost, self._lost = self._lost, set()
            return tuple(lost | self._due)

    def is_joining(self) -> bool:
        """Return whether the group has not answered yet since it was joined, or since it began to share anew."""
        return not self._has_joined.is_set()

    def forget(self) -> None:
        """Pause everything that is assigned, so that it is due again."""
        self._hold(self._consumer.assignment() or ())

    def renew(self) -> None:
        """Leave the group and join it again."""
        self._consumer.unsubscribe()
        with self._lock:
            self._due.clear()
        self._has_joined.clear()
        self._consumer.subscribe([self._topic], listener=self)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Set a position, so that the library asks for none, and pause until the epoch is taken; on its thread."""
        self._hold(assigned)
        self._has_joined.set()

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Note that the group takes partitions away, and gives them anew; on the library's thread."""
        self._has_joined.clear()
        with self._lock:
            self._due.difference_update(revoked)
            self._lost.update(revoked)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """Note that the group went on without us; on the library's thread."""
        self.on_partitions_revoked(lost)

    def _hold(self, places: Collection[TopicPartition]) -> None:
        for place in places:
            with suppress(ValueError, KeyError):
                self._consumer.pause(place)
                self._consumer.seek(place, 0)
        with self._lock:
            self._due.update(places)
