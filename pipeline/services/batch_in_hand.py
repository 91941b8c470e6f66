"""A claimed batch, from its claim until every edit of it has a verdict or is back in the queue.

What kills the ranks, or takes them too long, is no verdict, and nobody knows whose fault it was. So the edits that were
on trial come back to be tried with fewer, down to one: after O(log n) batches the culprit is alone, and dies of what
befell it alone, while the others are edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from pipeline.domain.batches import Setback
from pipeline.domain.edits import Edit
from pipeline.domain.errors import (
    IntegrityBroken,
    LeaseLost,
    Misconfigured,
    Unavailable,
    one_line,
)
from pipeline.services.lease_keeping import LeaseKeeper
from pipeline.services.ports import LineageStore
from pipeline.telemetry.metrics import BATCHES_GIVEN_BACK

if TYPE_CHECKING:
    from pipeline.adapters.sql.queue import SqlEditQueue

NOT_OF_AN_EDIT = (Misconfigured, Unavailable, IntegrityBroken, OSError)
"""Errors that tell of the world around a batch, whatever was being done when they came."""

log = structlog.get_logger()


class BatchInHand:
    """Puts a batch back when it ends without a verdict.

    Args:
        edits: the batch; none for a removal.
        keeper: keeps the lease under which it was claimed.
        queue: where it goes back to.
        lineages: holds the lineage if the ranks fail with every edit.
        max_attempts: failures of an edit by itself that make it dead.
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        keeper: LeaseKeeper,
        *,
        queue: SqlEditQueue,
        lineages: LineageStore,
        max_attempts: int,
    ) -> None:
        self._edits, self._keeper = tuple(edits), keeper
        self._queue, self._lineages, self._max_attempts = queue, lineages, max_attempts
        self._on_trial: tuple[Edit, ...] | None = None

    @contextmanager
    def on_trial(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Do something with some of the edits; if it fails, these are the ones it failed with. May be narrowed."""
        before, self._on_trial = self._on_trial, tuple(edits)
        yield
        self._on_trial = before  # after a failure it stays

    def is_to_blame(self, error: Exception) -> bool:
        """Return whether an error may be the fault of what was on trial."""
        return self._on_trial is not None and not isinstance(error, NOT_OF_AN_EDIT)

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Put everything back that has no verdict when something fails; a lost lease does that by itself."""
        try:
            yield
        except LeaseLost:
            raise
        except Exception as error:
            self._give_back(error)
            raise

    def release(self, edits: Sequence[Edit], *, reason: str, setback: Setback) -> None:
        """Put edits back into the queue, to be tried again as their setback says."""
        if edits:
            edit_ids = [edit.edit_id for edit in edits]
            self._queue.release(
                self._keeper.lease, edit_ids, reason=reason, max_attempts=self._max_attempts, setback=setback
            )

    def _give_back(self, error: Exception) -> None:
        tried = (self._on_trial or ()) if self.is_to_blame(error) else ()
        others = [edit for edit in self._edits if edit not in tried]
        reason = one_line(error)
        setback = self._setback(tried, reason) if tried else Setback.hindered
        BATCHES_GIVEN_BACK.labels(error=type(error).__name__).inc()
        log.warning("batch given back", tried=len(tried), others=len(others), setback=setback.value, error=reason)
        self.release(tried, reason=reason, setback=setback)
        self.release(others, reason=reason, setback=Setback.untried if tried else Setback.hindered)

    def _setback(self, tried: Sequence[Edit], reason: str) -> Setback:
        """Return what a failure says of the edits that were on trial; ranks with which nothing works blame nobody."""
        if len(tried) > 1:
            return Setback.together
        [edit] = tried
        lineage = edit.request.lineage
        if edit.attempts + 1 < self._max_attempts or not self._queue.nothing_works(lineage, edit.edit_id):
            return Setback.alone
        hold = f"the ranks fail with every edit; resume once they work: {reason}"
        self._lineages.hold(lineage, reason=hold, actor=self._keeper.lease.owner)
        return Setback.hindered
