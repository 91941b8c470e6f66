"""Keeps a lease alive from a side thread while its owner works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from pipeline.domain.errors import LeaseLost, one_line
from pipeline.domain.lineages import Lease, Work
from pipeline.domain.rank_api import Step, told_to
from pipeline.telemetry.metrics import LEASES_LOST

if TYPE_CHECKING:
    from pipeline.adapters.sql.leases import SqlLeaseStore

log = structlog.get_logger()

NOTE_EVERY_SECONDS = 1.0
"""Parts of one step that come faster are not all written down."""


class LeaseKeeper:
    """Context manager: renews every third of the lease's life, gives it back at the end.

    The database decides: every write of the owner is checked there. Looking at `lease` only lets the
    owner stop early when a renewal has failed.

    Args:
        leases: where it is held.
        lease: what is held.
        ttl: life of a lease.
        on_step: called with each step of the work.
    """

    def __init__(
        self,
        leases: SqlLeaseStore,
        lease: Lease,
        *,
        ttl: timedelta,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._leases = leases
        self._lease = lease
        self._ttl = ttl
        self._on_step = on_step
        self.rings = False
        """Whether the lineage still has work when the lease is given back, so that a doorbell has to ring for it."""
        self._stop = threading.Event()
        self._lost: LeaseLost | None = None
        self._work: Work | None = None
        self._noted_at = 0.0
        self._thread = threading.Thread(target=self._renew_until_stopped, name="lease-keeper", daemon=True)

    @property
    def lease(self) -> Lease:
        """The lease as last renewed.

        Raises:
            LeaseLost: if a renewal found that somebody else has it.
        """
        if self._lost is not None:
            raise LeaseLost(str(self._lost), lineage=self._lease.lineage) from self._lost
        return self._lease

    @contextmanager
    def doing(self, kind: str, num_edits: int) -> Iterator[None]:
        """Tell whoever waits what is done inside, step by step; what cannot be told stops no work."""
        self._note(Work(kind=kind, num_edits=num_edits), begins=True)
        try:
            with told_to(self._heard):
                yield
        finally:
            self._work = None  # the next piece of work is written over it, or the lease is given back

    def tries(self, num_edits: int) -> None:
        """Say that a trial of some of the edits begins."""
        if self._work is not None:
            self._note(replace(self._work, trial=self._work.trial + 1, num_tried=num_edits))

    def _heard(self, step: Step) -> None:
        self._on_step()
        if self._work is not None:
            self._note(replace(self._work, step=step), is_part=step.name == self._work.step.name)

    def _note(self, work: Work, *, begins: bool = False, is_part: bool = False) -> None:
        self._work = work
        now = time.monotonic()
        if self._lost is not None or (is_part and now < self._noted_at + NOTE_EVERY_SECONDS):
            return
        self._noted_at = now
        try:
            self._leases.note(self._lease, work, begins=begins)
        except Exception as error:
            log.warning("what is being done was not noted", **self._about, error=one_line(error))

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            self._leases.release(self._lease, rings=self.rings)

    @property
    def _about(self) -> dict[str, str]:
        lease = self._lease
        return {"lineage": lease.lineage, "owner": lease.owner, "expires_at": lease.expires_at.isoformat()}

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._ttl.total_seconds() / 3):
            try:
                self._lease = self._leases.renew(self._lease, ttl=self._ttl)
            except LeaseLost as error:
                LEASES_LOST.inc()
                log.warning("lease lost", **self._about, error=one_line(error))
                self._lost = error
                return
            except Exception as error:
                # The database may be back before the lease ends; the next third tries again, and if it
                # comes too late the owner's next write is refused.
                log.warning("lease not renewed, tried again", **self._about, error=one_line(error))
