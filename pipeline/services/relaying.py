"""Carries out the side effects that are owed. Each may be done twice."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from enum import Enum, auto

import structlog

from pipeline.domain.errors import CorrigendaError, one_line
from pipeline.services.claim_keeping import ClaimKeeper
from pipeline.services.ports import POSTPONED, OutboxItem, OutboxStore
from pipeline.telemetry.metrics import OUTBOX_HANDLED

Handler = Callable[[OutboxItem], None]
"""Reaches the goal of an item, or raises. Doing it twice must be the same as doing it once."""

SLOW = timedelta(seconds=2)
"""A service that took this long to be unavailable is not asked again in the same run."""

MOMENT = timedelta(seconds=0.5)
"""For so long goals that are reached may wait to be noted."""


GLANCE = timedelta(seconds=0.25)
"""For so long it stands which kinds are due."""


class NotYet(CorrigendaError):
    """An item whose time has not come: nothing was tried, so that no try is counted.

    Args:
        message: what it waits for.
        wait: how long to leave it alone.
    """

    def __init__(self, message: str, *, wait: timedelta) -> None:
        super().__init__(message)
        self.wait = wait


class _Outcome(Enum):
    """What came of one item."""

    REACHED = auto()
    FAILED = auto()
    KEPT_WAITING = auto()
    """Its service took long to say that it is away; what is behind would wait as long each."""


class _Reached:
    """Notes goals that are reached, those of a moment in one transaction: a commit each would be the longest part.

    What was not noted when the process died is done again. Until an item of a stream is noted, no later one is begun.
    """

    def __init__(self, outbox: OutboxStore) -> None:
        self._outbox = outbox
        self._ids: list[str] = []
        self._noted_at = time.monotonic()

    def add(self, item: OutboxItem) -> None:
        self._ids.append(item.outbox_id)
        if time.monotonic() - self._noted_at > MOMENT.total_seconds():
            self._note()

    def __enter__(self) -> _Reached:
        return self

    def __exit__(self, *raised: object) -> None:
        self._note()

    def _note(self) -> None:
        if self._ids:
            self._outbox.done(self._ids)
        self._ids, self._noted_at = [], time.monotonic()


class DueKinds:
    """Which kinds have something due, asked once for all relays of a process: most looks find nothing.

    Args:
        ask: asks the outbox.
    """

    def __init__(self, ask: Callable[[], frozenset[str]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._found: frozenset[str] = frozenset()
        self._asked_at = -math.inf

    def include(self, kind: str) -> bool:
        """Return whether something of a kind is due, or was a moment ago.

        Raises:
            Unavailable: if the outbox does not answer.
        """
        with self._lock:
            if time.monotonic() - self._asked_at > GLANCE.total_seconds():
                self._found, self._asked_at = self._ask(), time.monotonic()
            return kind in self._found


class OutboxRelay:
    """Takes what is due of one kind and hands each item to the handler of that kind.

    Each kind has a run of its own, so that no kind waits for the service of another.
    """

    def __init__(self, *, outbox: OutboxStore, handlers: Mapping[str, Handler]) -> None:
        self._outbox = outbox
        self._handlers = handlers
        self._log = structlog.get_logger(__name__)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of items that there are handlers for."""
        return tuple(self._handlers)

    def run_once(self, kind: str, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Handle items of one kind until none is due; return how many goals were reached.

        An item that fails is owed again later; the others go on. One that keeps failing is given up.

        Raises:
            Unavailable: if the outbox itself does not answer.
        """
        num_done = 0
        while not should_stop():
            asked_at = time.monotonic()
            items = self._outbox.due(kind)
            outcomes = self._work_through(items, ClaimKeeper(self._outbox, items, asked_at=asked_at), should_stop)
            num_done += outcomes[_Outcome.REACHED]
            if not items or outcomes[_Outcome.KEPT_WAITING]:
                break
        return num_done

    def _work_through(
        self, items: Sequence[OutboxItem], claims: ClaimKeeper, should_stop: Callable[[], bool]
    ) -> Counter[_Outcome]:
        """Handle what was claimed, in order, as long as the claims hold; the rest is given back."""
        outcomes: Counter[_Outcome] = Counter()
        waiting = deque(items)
        with claims, _Reached(self._outbox) as reached:
            while waiting and claims.holds(waiting[0]) and not (should_stop() or outcomes[_Outcome.KEPT_WAITING]):
                outcome = self._settle(item := waiting.popleft())
                outcomes[outcome] += 1
                if outcome is _Outcome.REACHED:
                    reached.add(item)
        if waiting:
            self._outbox.release(waiting)
        return outcomes

    def _settle(self, item: OutboxItem) -> _Outcome:
        """Handle one item and note what came of it."""
        began = time.monotonic()
        try:
            self._handlers[item.kind](item)
        except NotYet as error:
            return self._postpone(item, error, wait=error.wait)
        except CorrigendaError as error:
            self._log.warning("outbox_failed", item=item.kind, key=item.dedup_key, error=str(error), ids=error.ids)
            if not error.retryable:
                return self._fail(item, str(error) or type(error).__name__)
            is_slow = time.monotonic() - began > SLOW.total_seconds()
            outcome = self._postpone(item, error, wait=POSTPONED)
            return _Outcome.KEPT_WAITING if is_slow else outcome
        except Exception as error:
            # Whatever it is, it must not keep the others from being handled.
            self._log.exception("outbox_broken", item=item.kind, key=item.dedup_key)
            return self._fail(item, one_line(error))
        OUTBOX_HANDLED.labels(kind=item.kind, outcome="reached").inc()
        return _Outcome.REACHED

    def _postpone(self, item: OutboxItem, error: CorrigendaError, *, wait: timedelta) -> _Outcome:
        OUTBOX_HANDLED.labels(kind=item.kind, outcome="postponed").inc()
        self._outbox.postponed(item, error=str(error) or type(error).__name__, wait=wait)
        return _Outcome.FAILED

    def _fail(self, item: OutboxItem, error: str) -> _Outcome:
        is_given_up = self._outbox.failed(item, error=error)
        OUTBOX_HANDLED.labels(kind=item.kind, outcome="given_up" if is_given_up else "failed").inc()
        if is_given_up:
            self._log.error("outbox_given_up", item=item.kind, key=item.dedup_key, error=error)
        return _Outcome.FAILED
