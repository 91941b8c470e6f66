"""Keeps the claims of side effects alive from a side thread while a relay carries them out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import structlog

from pipeline.domain.errors import CorrigendaError
from pipeline.services.ports import CLAIM, OutboxItem, OutboxStore


class ClaimKeeper:
    """Context manager: renews the claims every third of their life, however long one item takes.

    A process that was stopped for longer than a claim lasts finds that it holds nothing any more: time is measured by
    the monotonic clock, from before the claim was asked for.
    """

    def __init__(self, outbox: OutboxStore, items: Sequence[OutboxItem], *, asked_at: float) -> None:
        self._outbox = outbox
        self._items = tuple(items)
        self._held = frozenset(item.outbox_id for item in items)
        self._until = asked_at + CLAIM.total_seconds()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="claim-keeper", daemon=True)
        self._log = structlog.get_logger(__name__)

    def holds(self, item: OutboxItem) -> bool:
        """Return whether nobody else can have the item yet."""
        return item.outbox_id in self._held and time.monotonic() < self._until

    def __enter__(self) -> ClaimKeeper:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(CLAIM.total_seconds() / 3):
            asked_at = time.monotonic()
            try:
                self._held = self._outbox.renew(self._items)
            except CorrigendaError as error:
                # The next third tries again; if that comes too late, the relay drops what it no longer holds.
                self._log.warning("claims_not_renewed", error=str(error), ids=error.ids)
                continue
            self._until = asked_at + CLAIM.total_seconds()
