"""Carries out the side effects that are owed. Each may be done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import structlog

from pipeline.domain.errors import CorrigendaError, Unavailable
from pipeline.services.ports import OutboxItem, OutboxStore

Handler = Callable[[OutboxItem], None]
"""Reaches the goal of an item, or raises. Doing it twice must be the same as doing it once."""

SLOW = timedelta(seconds=2)
"""A service that took this long to be unavailable is not asked again in the same run."""


class OutboxRelay:
    """Takes what is due and hands each item to the handler of its kind."""

    def __init__(self, *, outbox: OutboxStore, handlers: Mapping[str, Handler]) -> None:
        self._outbox = outbox
        self._handlers = handlers
        self._log = structlog.get_logger(__name__)

    def run_once(self) -> int:
        """Handle everything that is due now; returns how many goals were reached.

        An item that fails is owed again later; the others go on.

        Raises:
            Unavailable: if the outbox itself does not answer.
        """
        num_done = 0
        away: dict[str, str] = {}
        for item in self._outbox.due():
            error = away.get(item.kind) or self._handle(item, away)
            if error is None:
                self._outbox.done(item.outbox_id)
                num_done += 1
            else:
                self._outbox.failed(item.outbox_id, error=error)
        return num_done

    def _handle(self, item: OutboxItem, away: dict[str, str]) -> str | None:
        """Return what went wrong, if anything, and note in `away` a kind whose service keeps us waiting."""
        began = time.monotonic()
        try:
            self._handler(item)(item)
        except CorrigendaError as error:
            self._log.warning("outbox_failed", kind=item.kind, key=item.dedup_key, error=str(error), **error.ids)
            if isinstance(error, Unavailable) and time.monotonic() - began > SLOW.total_seconds():
                away[item.kind] = str(error)
            return str(error) or type(error).__name__
        except Exception as error:
            # Whatever it is, it must not keep the others from being handled.
            self._log.exception("outbox_broken", kind=item.kind, key=item.dedup_key)
            return f"{type(error).__name__}: {error}"
        return None

    def _handler(self, item: OutboxItem) -> Handler:
        handler = self._handlers.get(item.kind)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise CorrigendaError(f"expected an outbox item of a kind among {known}, got {item.kind!r}")
        return handler
