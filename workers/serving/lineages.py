"""The lineages that a process serves, each followed by a look at its alias every few seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Self

from pipeline.domain.errors import CorrigendaError, one_line
from workers.serving.following import Follower

log = logging.getLogger(__name__)


class ServedLineages:
    """Followers by lineage, and the thread that lets each look at its alias.

    Args:
        names: returns the lineages to serve; asked before each look, so that a new one is served too.
        follow: makes the follower of a lineage.
        interval: time between two looks.
    """

    def __init__(
        self, names: Callable[[], Iterable[str]], follow: Callable[[str], Follower], *, interval: timedelta
    ) -> None:
        self._names, self._follow, self._interval = names, follow, interval
        self._followers: dict[str, Follower] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="followers", daemon=True)
        self._told: dict[str, str] = {}
        self.fault: str | None = None
        """Why the names of the lineages cannot be read; None if they can."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def get(self, lineage: str) -> Follower | None:
        """Return the follower of a lineage; None if it is not served."""
        return self._followers.get(lineage)

    def every(self) -> tuple[Follower, ...]:
        """Return the followers by name of their lineage."""
        followers = dict(self._followers)
        return tuple(followers[name] for name in sorted(followers))

    @property
    def is_alive(self) -> bool:
        """Whether aliases are still looked at."""
        return self._thread.is_alive()

    def look(self) -> None:
        """Look at every alias once."""
        try:
            for name in self._names():
                if name not in self._followers:
                    self._followers[name] = self._follow(name)
            self.fault = None
        except CorrigendaError as error:
            self.fault = one_line(error)
        self._tell("lineages", self.fault)
        for follower in self.every():
            follower.poll()
            self._tell(follower.lineage, follower.fault)

    def _tell(self, about: str, fault: str | None) -> None:
        """Write down what is wrong, once for as long as it stays so."""
        if fault is not None and fault != self._told.get(about):
            log.warning("%s: %s", about, fault)
        self._told[about] = fault or ""

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception:
                # What nobody foresaw in one look must not end all others; what is served stays.
                log.exception("a look at the aliases failed")
            self._stopping.wait(self._interval.total_seconds())
