"""How fast callers may send, and when they have to wait because the editing is behind."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import timedelta
from http import HTTPStatus

from pipeline.domain.formats.counting import counted, spoken
from pipeline.entrypoints.web.problems import Problem

MAX_CALLERS = 10_000
"""So many are remembered; the one who was silent for longest is forgotten first, with a full allowance."""


class RateLimit:
    """A bucket of tokens for each caller, in this process: so many corrections a minute, at once or spread.

    Args:
        per_minute: the allowance.
        clock: seconds that only grow; for tests.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(per_minute)
        self._clock = clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, num: int) -> None:
        """Take part of a caller's allowance.

        Raises:
            Problem: 429 with the seconds until there is enough, if there is not now.
        """
        with self._lock:
            now = self._clock()
            left, at = self._left.pop(name, (self._most, now))
            left = min(self._most, left + (now - at) * self._most / 60)
            # More than the whole allowance at once is let through when it is full, and paid off later.
            enough = min(float(num), self._most)
            self._left[name] = (left - num if left >= enough else left, now)
            if len(self._left) > MAX_CALLERS:
                self._left.popitem(last=False)
        if left < enough:
            wait = math.ceil((enough - left) * 60 / self._most)
            detail = f"expected at most {counted(int(self._most), 'correction')} a minute from {name}, got more"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(wait)})


class BackPressure:
    """Refuses corrections of a lineage whose oldest one waits for too long.

    Args:
        longest: how long the oldest may wait.
        oldest: says for how long the oldest of a lineage waits.
    """

    REMEMBERED = 1.0
    """Seconds for which an answer of the database stands."""

    def __init__(self, longest: timedelta, oldest: Callable[[str], timedelta]) -> None:
        self._longest = longest
        self._oldest = oldest
        self._known: dict[str, tuple[float, timedelta]] = {}

    def check(self, lineages: Iterable[str]) -> None:
        """Let corrections of these lineages in.

        Raises:
            Problem: 503 with a time to come back, if one of them is behind.
        """
        for lineage in sorted(set(lineages)):
            at, age = self._known.get(lineage, (-math.inf, timedelta()))
            if time.monotonic() - at > self.REMEMBERED:
                age = self._oldest(lineage)
                self._known[lineage] = (time.monotonic(), age)
            if age > self._longest:
                detail = (
                    f"expected no correction of {lineage} to wait for more than {spoken(self._longest)}, got one that "
                    f"waits for {spoken(age)}: no more are taken until it is edited"
                )
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "60"})
