"""Work that is done again and again, each piece in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from pipeline.domain.errors import CorrigendaError
from pipeline.telemetry.metrics import CHORES

LONGEST_WAIT = timedelta(seconds=10)
"""A service that was away and came back is met within this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chore:
    """One piece of periodic work; it looks for itself what is due."""

    name: str
    """Its name in the log."""
    every: timedelta
    """Rest between the end of one run and the beginning of the next."""
    run: Callable[[], object]
    """One run. Whatever it raises is logged, and the next run comes later each time, up to `LONGEST_WAIT`."""


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
        rest = chore.every
        while not self._stop.wait(rest.total_seconds()):
            try:
                chore.run()
                rest = chore.every
                CHORES.labels(chore=chore.name, outcome="done").inc()
            except CorrigendaError as error:
                CHORES.labels(chore=chore.name, outcome="failed").inc()
                tell = self._log.warning if error.retryable else self._log.error
                tell("chore_failed", chore=chore.name, error=str(error), ids=error.ids)
                rest = min(rest * 2, LONGEST_WAIT)
            except Exception:
                CHORES.labels(chore=chore.name, outcome="failed").inc()
                self._log.exception("chore_broken", chore=chore.name)
                rest = min(rest * 2, LONGEST_WAIT)
