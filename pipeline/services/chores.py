"""Work that is done again and again, each piece in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from pipeline.domain.errors import CorrigendaError, Misconfigured, one_line
from pipeline.telemetry.metrics import CHORES

LONGEST_WAIT = timedelta(seconds=10)
"""A service that was away and came back is met within this."""
TOLD_AGAIN = timedelta(minutes=5)
"""How long a failure that stays the same is not told again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chore:
    """One piece of periodic work; it looks for itself what is due."""

    name: str
    """Its name in the log."""
    every: timedelta
    """Rest between the end of one run and the beginning of the next."""
    run: Callable[[], object]
    """One run. Whatever it raises is logged once, and every five minutes while it stays the same. The next run comes
    later each time, up to `LONGEST_WAIT`."""


class Chores:
    """Does every chore until told to stop. None waits for another, and none runs beside itself.

    No clock is read: rests are measured by the monotonic clock, and nothing is sent that could pile up or expire.
    """

    def __init__(self, chores: Sequence[Chore], *, stop: threading.Event) -> None:
        self._chores = chores
        self._stop = stop
        self._log = structlog.get_logger(__name__)

    def run(self, *, grace: timedelta) -> bool:
        """Work until the event is set; return False if a thread ended without being told to.

        Args:
            grace: how long a run that was begun may take to end; threads that take longer die with the process.
        """
        threads = [
            threading.Thread(target=self._repeat, args=(chore,), name=chore.name, daemon=True) for chore in self._chores
        ]
        for thread in threads:
            thread.start()
        while not self._stop.wait(timeout=1) and all(thread.is_alive() for thread in threads):
            pass
        was_told = self._stop.is_set()
        self._stop.set()
        for thread in threads:
            thread.join(grace.total_seconds() / len(threads))
        return was_told

    def _repeat(self, chore: Chore) -> None:
        rest, failing = chore.every, _Failing()
        while not self._stop.wait(rest.total_seconds()):
            try:
                chore.run()
            except Exception as error:
                CHORES.labels(chore=chore.name, outcome="failed").inc()
                if failing.is_news(one_line(error)):
                    self._tell(chore, error)
                rest = min(rest * 2, LONGEST_WAIT)
                continue
            CHORES.labels(chore=chore.name, outcome="done").inc()
            rest = chore.every
            if failing.ends():
                self._log.info("chore_goes_on", chore=chore.name)

    def _tell(self, chore: Chore, error: Exception) -> None:
        if not isinstance(error, CorrigendaError):
            self._log.error("chore_broken", chore=chore.name, exc_info=error)
            return
        needs_person = isinstance(error, Misconfigured) or not error.retryable
        tell = self._log.error if needs_person else self._log.warning
        tell("chore_failed", chore=chore.name, error=str(error), ids=error.ids)


class _Failing:
    """What a chore failed with last: the same again is told now and then, not every few seconds for a whole night."""

    def __init__(self) -> None:
        self._said: str | None = None
        self._told_at = 0.0

    def is_news(self, said: str) -> bool:
        """Return whether to tell of a failure: of the first one, of another one, and of the same after a while."""
        if said == self._said and time.monotonic() - self._told_at < TOLD_AGAIN.total_seconds():
            return False
        self._said, self._told_at = said, time.monotonic()
        return True

    def ends(self) -> bool:
        """Note a run that went well; return whether the one before it failed."""
        was_failing, self._said = self._said is not None, None
        return was_failing
