"""Tells others what happened: workers by a doorbell, producers by topics of results and of refused messages.

It is the handlers of three kinds of outbox item.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.domain.contract.messages import DeadLetter
from pipeline.domain.contract.results import EditResultV1
from pipeline.services.ports import (
    DeadLetterStore,
    Doorbell,
    HistoryStore,
    LineageStore,
    OutboxItem,
    Publisher,
)
from pipeline.services.relaying import Handler

MAX_WHOLE_BYTES = 900_000
"""Dead letters up to this size are published whole: with key and headers they fit in a message of 1 MiB."""
EXCERPT_BYTES = 64 * 1024
MAX_KEY_CHARS = 1_000
MAX_REASON_CHARS = 4_000


class Announcer:
    """Handlers of the kinds `doorbell`, `result` and `dead_letter`."""

    def __init__(
        self,
        *,
        doorbell: Doorbell,
        publisher: Publisher,
        lineages: LineageStore,
        history: HistoryStore,
        dead_letters: DeadLetterStore,
        results_topic: str,
        dead_letter_topic: str,
    ) -> None:
        self._doorbell = doorbell
        self._publisher = publisher
        self._lineages = lineages
        self._history = history
        self._dead_letters = dead_letters
        self._results_topic = results_topic
        self._dead_letter_topic = dead_letter_topic

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by kind of outbox item, for the relay."""
        return {"doorbell": self.ring, "result": self.announce_result, "dead_letter": self.announce_dead_letter}

    def ring(self, item: OutboxItem) -> None:
        """Wake a worker of the lineage's base."""
        lineage = str(item.payload["lineage"])
        base_digest = item.payload.get("base_digest") or self._lineages.lineage(lineage).settings.base.digest
        self._doorbell.ring(lineage, base_digest=base_digest)

    def announce_result(self, item: OutboxItem) -> None:
        """Tell the producer where its correction stands."""
        result = self._result(item.payload)
        value = result.model_dump_json().encode()
        self._publisher.publish(self._results_topic, key=result.lineage, value=value)

    def announce_dead_letter(self, item: OutboxItem) -> None:
        """Tell the producer that a message can never be an edit, and why."""
        letter = self._dead_letters.dead_letter(str(item.payload["dead_letter_id"]))
        self._publisher.publish(
            self._dead_letter_topic, key=_key(letter), value=_excerpt(letter.value), headers=_headers(letter)
        )

    def _result(self, payload: Mapping[str, Any]) -> EditResultV1:
        return EditResultV1(
            request_id=payload["request_id"],
            lineage=payload["lineage"],
            status=payload["status"],
            reason=payload["reason"],
            snapshot_seq=self._history.snapshot_seq(payload["edit_id"]),
            is_live=payload.get("is_live"),
            at=datetime.fromisoformat(payload["at"]),
        )


def _key(letter: DeadLetter) -> str:
    """Return the message's own key as far as it is text, so that what belongs together stays together."""
    return (letter.key or b"").decode("utf-8", errors="replace")[:MAX_KEY_CHARS]


def _excerpt(value: bytes | None) -> bytes | None:
    return value if value is None or len(value) <= MAX_WHOLE_BYTES else value[:EXCERPT_BYTES]


def _headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    excerpt = _excerpt(letter.value)
    said = {
        "reason": letter.error[:MAX_REASON_CHARS],
        "origin_cluster": letter.partition.cluster_id,
        "origin_topic_id": letter.partition.topic_id,
        "origin_topic": letter.partition.topic,
        "origin_partition": str(letter.partition.partition),
        "origin_offset": str(letter.offset),
        "dead_letter_id": letter.dead_letter_id,
        "value_bytes": str(len(letter.value or b"")),
        "is_whole": "true" if excerpt == letter.value else "false",
    }
    return [(name, text.encode()) for name, text in said.items()]
