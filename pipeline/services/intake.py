"""Turns what a topic brings into recorded requests and dead letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential_jitter

from pipeline.domain.contract.messages import Message, ParsedMessage, PartitionClaim, Poll, PollCounts
from pipeline.domain.contract.wire import parse_message
from pipeline.domain.errors import EpochStale, InvalidMessage, Unavailable
from pipeline.domain.failpoints import failpoint
from pipeline.services.ports import IntakeStore
from pipeline.telemetry import tracing
from pipeline.telemetry.metrics import INTAKE_RECORD_SECONDS, MESSAGES

Result = TypeVar("Result")

GIVE_UP_AFTER = timedelta(minutes=2)
"""How long the broker or the database may be away before intake ends and leaves the rest to its supervisor."""
FIRST_WAIT = timedelta(milliseconds=100)
LONGEST_WAIT = timedelta(seconds=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What one poll brought of one partition that is ours."""

    claim: PartitionClaim
    """Under which epoch it was read."""
    messages: tuple[Message, ...]
    """In order of offset."""
    next_offset: int
    """The offset after the last one."""


class MessageSource(Protocol):
    """The topic of requests, and which of its partitions are ours."""

    def poll(self) -> tuple[Fetched, ...]:
        """Wait a moment for messages of partitions whose epoch we hold; empty if none came.

        What was returned is not returned again, unless a partition is taken anew.

        Raises:
            StreamGap: if the log does not hold the offset that the database needs next.
            Unavailable, Misconfigured: as the broker says.
        """

    def commit(self, fetched: Sequence[Fetched]) -> None:
        """Tell the broker how far we are. Advice for people and monitors: it never raises, nothing reads it back."""

    def step_back(self) -> None:
        """Give up every partition, and claim afresh what no other consumer holds."""


class Intake:
    """Poll, parse, record in one transaction, tell the broker; over and over."""

    def __init__(
        self,
        *,
        source: MessageSource,
        store: IntakeStore,
        give_up_after: timedelta = GIVE_UP_AFTER,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Take what both are told of.

        Args:
            source: the topic.
            store: the database.
            give_up_after: how long either may be away.
            on_poll: called after each poll that went well, also one that brought nothing.
        """
        self._source = source
        self._store = store
        self._give_up_after = give_up_after
        self._on_poll = on_poll
        self._log = structlog.get_logger(__name__)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Take in messages until told to stop; a poll that was begun is finished.

        Raises:
            Unavailable: if the broker or the database stays away for longer than `give_up_after`.
            StreamGap, Misconfigured: a person must act.
        """
        while not should_stop():
            try:
                self.run_once(should_stop)
                self._on_poll()
            except Unavailable:
                if not should_stop():
                    raise

    def run_once(self, should_stop: Callable[[], bool] = lambda: False) -> PollCounts:
        """Take one poll from the topic to the database. Raises as `run` does."""
        fetched = self._patiently(self._source.poll, should_stop)
        if not fetched:
            return PollCounts()
        polls = [parsed_poll(part) for part in fetched]
        failpoint("intake.before_record")
        try:
            # Retried with the same polls: after a commit whose outcome is unknown the store recognises them.
            with INTAKE_RECORD_SECONDS.time():
                counts = self._patiently(lambda: self._store.record(polls), should_stop)
        except EpochStale as error:
            self._log.warning("partition_lost", error=str(error), ids=error.ids)
            self._patiently(self._source.step_back, should_stop)
            return PollCounts()
        failpoint("intake.after_record")
        self._source.commit(fetched)
        failpoint("intake.after_commit")
        self._tell(polls, counts)
        return counts

    def _patiently(self, action: Callable[[], Result], should_stop: Callable[[], bool]) -> Result:
        """Retry while a service is away, for a bounded time; a stop ends the waiting."""
        told: set[str] = set()

        def tell(state: RetryCallState) -> None:
            error = str(state.outcome.exception()) if state.outcome else ""
            if error not in told:  # tried every two seconds, so that the same is not said sixty times
                self._log.warning("service_away", error=error, tried_for=f"{self._give_up_after.total_seconds():g} s")
            told.add(error)

        return Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Unavailable) and not should_stop()),
            stop=stop_before_delay(self._give_up_after),
            wait=wait_exponential_jitter(multiplier=FIRST_WAIT.total_seconds(), max=LONGEST_WAIT, jitter=FIRST_WAIT),
            before_sleep=tell,
            reraise=True,
        )(action)

    def _tell(self, polls: Sequence[Poll], counts: PollCounts) -> None:
        MESSAGES.labels(outcome="received").inc(counts.received)
        MESSAGES.labels(outcome="duplicate").inc(counts.duplicates)
        MESSAGES.labels(outcome="refused").inc(counts.refused)
        misrouted = sum(is_misrouted(parsed) for poll in polls for parsed in poll.messages)
        self._log.info(
            "poll_recorded",
            received=counts.received,
            duplicates=counts.duplicates,
            refused=counts.refused,
            misrouted=misrouted,
            next_offsets={poll.claim.partition.partition: poll.next_offset for poll in polls},
        )


def parsed_poll(fetched: Fetched) -> Poll:
    """Return every message with what it is: a request, or the reason why it can never be one."""
    messages = tuple(parsed_message(message) for message in fetched.messages)
    return Poll(claim=fetched.claim, messages=messages, next_offset=fetched.next_offset)


def parsed_message(message: Message) -> ParsedMessage:
    """Return the message and its request, or the reason why it is none."""
    try:
        request = parse_message(message.value)
        traceparent = tracing.mark(
            "request.received",
            parent=tracing.told_in(message.headers),
            lineage=request.lineage,
            request=request.request_id,
            partition=message.partition.partition,
            offset=message.offset,
        )
        return ParsedMessage(message=message, request=request, refusal=None, traceparent=traceparent)
    except InvalidMessage as error:
        return ParsedMessage(message=message, request=None, refusal=str(error))


def is_misrouted(parsed: ParsedMessage) -> bool:
    """Return whether a request came under a key that is not its lineage.

    That is no reason to refuse a correction: the key only chooses the partition, the lineage stands in the value, and
    of two corrections of a fact the later `occurred_at` wins wherever they lie. It is counted in the log instead.
    """
    key, request = parsed.message.key, parsed.request
    return request is not None and key is not None and key != request.lineage.encode()
