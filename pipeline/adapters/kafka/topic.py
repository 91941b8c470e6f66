"""Which incarnation of a topic the broker holds: a wiped broker or a topic made anew has another id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import TopicAuthorizationFailedError, UnknownTopicOrPartitionError, for_code

from pipeline.adapters.kafka.connection import broker_errors, opened
from pipeline.config import Settings
from pipeline.domain.contract.messages import PartitionKey
from pipeline.domain.errors import Misconfigured, Unavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicSeen:
    """A topic as the broker shows it now."""

    cluster_id: str
    """The broker's cluster id, else the incarnation from the settings."""
    topic_id: str
    """The topic's id, else its name."""
    topic: str
    """The topic's name."""
    partitions: tuple[int, ...]
    """Numbers of its partitions, in order."""

    def key(self, partition: int) -> PartitionKey:
        """Return the partition as the database knows it."""
        return PartitionKey(cluster_id=self.cluster_id, topic_id=self.topic_id, topic=self.topic, partition=partition)


class TopicWatch:
    """A client that asks the broker about one topic."""

    def __init__(self, settings: Settings, topic: str) -> None:
        """Name the topic; connects at the first look."""
        self._settings = settings
        self._topic = topic
        self._admin: Any = None
        self._last: TopicSeen | None = None

    def look(self) -> TopicSeen:
        """Return what the broker holds now.

        Raises:
            Unavailable: if it does not answer, or has no such topic (yet).
            Misconfigured: if it refuses us, or neither it nor the settings tell one incarnation from another.
        """
        try:
            with broker_errors(self._settings):
                described = self._connected().describe_topics([self._topic])[0]
                self._check(described["error_code"])
                self._last = self._seen(described)
        except BaseException:
            self.close()
            raise
        return self._last

    def close(self) -> None:
        """Leave the broker; the next look connects again."""
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def _connected(self) -> Any:
        if self._admin is None:
            self._admin = opened(KafkaAdminClient, self._settings)
        return self._admin

    def _seen(self, described: Any) -> TopicSeen:
        topic_id = str(described.get("topic_id") or "")
        # An id is never given twice, so a topic that still has its own is still in the same cluster.
        is_known = topic_id and self._last is not None and self._last.topic_id == topic_id
        return TopicSeen(
            cluster_id=self._last.cluster_id if self._last is not None and is_known else self._incarnation(),
            topic_id=topic_id or self._topic,
            topic=self._topic,
            partitions=tuple(sorted(part["partition_index"] for part in described["partitions"])),
        )

    def _incarnation(self) -> str:
        cluster_id = str(self._connected().describe_cluster()["cluster_id"] or "") or self._settings.kafka_incarnation
        if not cluster_id:
            raise Misconfigured(
                "the Kafka broker gives no cluster id: expected CORRIGENDA_KAFKA_INCARNATION to be set to a name that "
                "changes whenever the broker is wiped"
            )
        return cluster_id

    def _check(self, error_code: int) -> None:
        error = for_code(error_code)
        if error is UnknownTopicOrPartitionError:
            raise Unavailable(
                f"expected topic {self._topic!r} at the Kafka broker {self._settings.kafka_bootstrap}, got none of "
                "that name; `corrigenda up` makes it"
            )
        if error is TopicAuthorizationFailedError:
            raise Misconfigured(f"the Kafka broker does not let us read topic {self._topic!r}")
        if error_code:
            raise Unavailable(f"topic {self._topic!r} cannot be read now: {error.__name__}")
