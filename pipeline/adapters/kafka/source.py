"""The topic of requests, read from the offsets that the database holds.

A partition is ours once no other process holds it and its epoch is taken in SQL; what the client library fetched before
that is thrown away and read again from the database's next offset. After any error everything is claimed anew, so
nothing that was fetched and not handed over can be skipped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, Protocol, Self

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from pipeline.adapters.kafka.assignment import AssignedByGroup, AssignedByHand
from pipeline.adapters.kafka.connection import REQUEST_TIMEOUT_MS, broker_errors, opened
from pipeline.adapters.kafka.heard import HeardFailures
from pipeline.adapters.kafka.topic import TopicSeen, TopicWatch
from pipeline.adapters.kafka.unreadable import is_unreadable, unreadable
from pipeline.config import Settings
from pipeline.domain.contract.messages import Message, PartitionClaim, PartitionKey
from pipeline.domain.errors import CorrigendaError, StreamGap
from pipeline.services.intake import Fetched
from pipeline.telemetry.metrics import INTAKE_LAG

POLL_MS = 500
COMMIT_TIMEOUT_MS = 5_000
CLOSE_TIMEOUT_MS = 5_000
SESSION_TIMEOUT_MS = 10_000
"""After how long without a heartbeat a group gives the partitions of a member to the others. The library's 45 s would
leave those of an intake that was killed unread for as long, and some brokers answer who joins after half of it."""
LONGEST_JOIN_SECONDS = SESSION_TIMEOUT_MS / 1000
"""How long one poll waits for a group's answer, and a stop for that poll."""
MAX_SHORT_POLLS = 4


class Holds(Protocol):
    """Which partitions this process may read, and no other."""

    def take(self, partition: PartitionKey) -> PartitionClaim | None:
        """Hold a partition and raise its epoch; None while another process holds it."""

    def are_kept(self, partitions: Iterable[PartitionKey]) -> bool:
        """Return whether this process still holds all of these."""

    def release(self, partitions: Iterable[PartitionKey]) -> None:
        """Let others take these partitions."""

    def release_all(self) -> None:
        """Let others take everything."""


class KafkaSource:
    """The partitions of the topic of requests that are ours: all of them, or those that a group gives us."""

    def __init__(self, settings: Settings, holds: Holds) -> None:
        """Connect to the broker; claims nothing yet.

        Args:
            settings: where the broker is, the topic, the mode.
            holds: takes partitions for this process and says what comes next in each.

        Raises:
            Unavailable, Misconfigured: as the broker says.
        """
        self._settings = settings
        self._holds = holds
        self._topic = settings.requests_topic
        self._watch = TopicWatch(settings, self._topic)
        self._seen: TopicSeen | None = None
        self._claims: dict[TopicPartition, PartitionClaim] = {}
        self._num_short: Counter[TopicPartition] = Counter()
        self._waited_for: set[TopicPartition] = set()
        self._log = structlog.get_logger(__name__)
        self._consumer = opened_consumer(settings)
        self._open = ExitStack()
        self._failures = self._open.enter_context(HeardFailures("kafka.consumer.fetcher"))
        by = AssignedByGroup if settings.intake_mode == "group" else AssignedByHand
        self._assignment = by(self._consumer, self._topic)

    def poll(self) -> tuple[Fetched, ...]:
        """Return the next messages; take the epochs that are due first, all of them again if the topic was remade."""
        try:
            if not self._holds.are_kept(claim.partition for claim in self._claims.values()):
                self._log.warning("partitions_let_go", reason="the session with the database that holds them ended")
                self._forget()
            self._claim_what_is_due()
            records, gap = self._read()
            if self._watch.look() != self._seen:
                # What was fetched may belong to either incarnation; the new one is read from its own next offset.
                self._forget()
                return ()
            if gap is not None:
                raise gap
            self._check_ends()
        except CorrigendaError:
            self._forget()
            raise
        self._drop(self._assignment.lost())
        return tuple(self._fetched(place, found) for place, found in records.items() if place in self._claims)

    def commit(self, fetched: Sequence[Fetched]) -> None:
        """Commit the next offsets of what was recorded, which is advisory."""
        offsets = {
            TopicPartition(self._topic, part.claim.partition.partition): OffsetAndMetadata(part.next_offset, "", -1)
            for part in fetched
        }
        try:
            self._consumer.commit(offsets, timeout_ms=COMMIT_TIMEOUT_MS)
        except (KafkaError, AssertionError) as error:
            self._log.warning("commit_failed", error=str(error)[:300])

    def step_back(self) -> None:
        """Go back to what the database needs next; a group is joined again, so that its coordinator decides.

        Whoever took a partition holds it, so that this process waits for it as any other intake does.
        """
        self._forget()
        with broker_errors(self._settings):
            self._assignment.renew()

    def close(self) -> None:
        """Leave the group and the broker, within seconds, and let others take the partitions."""
        self._holds.release_all()
        self._watch.close()
        self._open.close()
        with suppress(KafkaError):
            self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _claim_what_is_due(self) -> None:
        if self._seen is None:
            self._seen = self._watch.look()
        due = self._assignment.due(self._seen.partitions)
        self._drop(due)
        taken = {place: claim for place in due if (claim := self._holds.take(self._seen.key(place.partition)))}
        self._tell_of_waiting(set(due) - set(taken))
        if not taken:
            return
        begins = self._begins(taken)
        for place, found in taken.items():
            claim = _checked(found, begins[place])
            try:
                self._assignment.start(place, claim.next_offset)
            except ValueError:  # the group took it away at this very moment
                self._holds.release([claim.partition])
                continue
            self._claims[place] = claim
            self._log.info(
                "partition_taken", partition=place.partition, epoch=claim.epoch, next_offset=claim.next_offset
            )

    def _tell_of_waiting(self, places: set[TopicPartition]) -> None:
        if places - self._waited_for:
            self._log.info(
                "partitions_waited_for",
                partitions=sorted(place.partition for place in places),
                reason="another intake reads them; they are taken once it ends",
            )
        self._waited_for = places

    def _begins(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offset that the log of each partition still holds."""
        with broker_errors(self._settings):
            first = self._consumer.beginning_offsets(list(places), timeout_ms=REQUEST_TIMEOUT_MS)
        return {place: int(offset) for place, offset in first.items()}

    def _check_ends(self) -> None:
        """Find logs that end before what we need next.

        Apache Kafka answers such a fetch with an error. Tansu answers with nothing, for ever, and what it says of the
        log's end when asked is too low where the last batch holds several records; only the high watermark of a fetch
        tells. It may fall back for a moment when a partition's leader changes, so one low value proves nothing.

        Raises:
            StreamGap: if a log has ended too early several times in a row.
        """
        for place, claim in self._claims.items():
            end = self._consumer.highwater(place)
            if end is not None:
                INTAKE_LAG.labels(partition=place.partition).set(max(0, end - claim.next_offset))
            is_short = end is not None and end < claim.next_offset
            self._num_short[place] = self._num_short[place] + 1 if is_short else 0
            if self._num_short[place] >= MAX_SHORT_POLLS:
                raise _gap(claim, f"a log that ends at {end}")

    def _read(self) -> tuple[dict[TopicPartition, list[Any]], StreamGap | None]:
        """Return records, or the gap that the broker tells of; a topic that was remade looks like one at first."""
        try:
            with broker_errors(self._settings):
                return self._polled(), None
        except StreamGap as gap:
            return {}, gap

    def _polled(self) -> dict[TopicPartition, list[Any]]:
        try:
            records = self._polled_till_joined()
        except Exception as error:
            if is_unreadable(error):
                raise unreadable(error, self._claims.values()) from error
            raise
        # An answer that is larger than the library takes is asked for again and again, and only its log tells.
        failure = self._failures.taken()
        if not records and failure is not None and is_unreadable(failure):
            raise unreadable(failure, self._claims.values()) from failure
        return records

    def _polled_till_joined(self) -> dict[TopicPartition, list[Any]]:
        """Poll once, and without a pause until the group has answered.

        The library throws away an answer that comes between two polls, and asks to join again. Where polls come as
        regularly as answers do, an intake would never get a partition.
        """
        limit = self._settings.intake_max_records
        began = time.monotonic()
        while True:
            records: dict[TopicPartition, list[Any]] = self._consumer.poll(timeout_ms=POLL_MS, max_records=limit)
            if records or not self._assignment.is_joining() or time.monotonic() - began > LONGEST_JOIN_SECONDS:
                return records

    def _fetched(self, place: TopicPartition, records: Sequence[Any]) -> Fetched:
        claim = self._claims[place]
        messages = tuple(
            Message(
                partition=claim.partition,
                offset=record.offset,
                key=record.key,
                value=record.value,
                headers=tuple((name, value or b"") for name, value in record.headers),
            )
            for record in records
        )
        next_offset = messages[-1].offset + 1
        self._claims[place] = replace(claim, next_offset=next_offset)
        return Fetched(claim=claim, messages=messages, next_offset=next_offset)

    def _drop(self, places: Collection[TopicPartition]) -> None:
        dropped = [claim for place in places if (claim := self._claims.pop(place, None))]
        for claim in dropped:
            _tell_no_lag(claim)
        self._holds.release(claim.partition for claim in dropped)

    def _forget(self) -> None:
        self._seen = None
        for claim in self._claims.values():
            _tell_no_lag(claim)
        self._claims.clear()
        self._num_short.clear()
        self._assignment.forget()
        self._holds.release_all()


def opened_consumer(settings: Settings) -> Any:
    """Return a connected consumer that reads only where it is told to, and commits nothing by itself.

    Raises:
        Misconfigured, Unavailable: as `broker_errors` says.
    """
    return opened(
        KafkaConsumer,
        settings,
        group_id=settings.intake_group,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        enable_auto_commit=False,
        # Where we read is always said by the database; with any other value a gap would be skipped in silence.
        auto_offset_reset="none",
        allow_auto_create_topics=False,
        # What a transaction took back was never acknowledged.
        isolation_level="read_committed",
    )


def _tell_no_lag(claim: PartitionClaim) -> None:
    """Say nothing more of a partition that another process reads from now on."""
    with suppress(KeyError):
        INTAKE_LAG.remove(claim.partition.partition)


def _checked(claim: PartitionClaim, first: int) -> PartitionClaim:
    """Return the claim, if the log has not lost what it needs next.

    Raises:
        StreamGap: if the log begins after the next offset.
    """
    if claim.epoch == 1 and claim.next_offset == 0:
        return replace(claim, next_offset=first)  # never read before: nothing is owed from before our time
    if claim.next_offset < first:
        raise _gap(claim, f"a log that begins at {first}")
    return claim


def _gap(claim: PartitionClaim, got: str) -> StreamGap:
    """Return the error that says what the log does not hold, and of which incarnation."""
    place = claim.partition
    return StreamGap(
        f"expected offset {claim.next_offset} of {place.topic}[{place.partition}] next, got {got} "
        f"(cluster {place.cluster_id}, topic id {place.topic_id}); going on would lose what lies between",
        topic=place.topic,
        partition=str(place.partition),
    )
