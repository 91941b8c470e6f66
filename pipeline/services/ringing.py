"""Rings again for lineages that have work and nobody at it: doorbells may be lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.services.ports import Doorbell, LineageStore

if TYPE_CHECKING:
    from pipeline.adapters.sql.leases import SqlLeaseStore


class Reaper:
    """Periodic work of the control plane; ringing twice does no harm."""

    def __init__(self, *, leases: SqlLeaseStore, lineages: LineageStore, doorbell: Doorbell) -> None:
        self._leases = leases
        self._lineages = lineages
        self._doorbell = doorbell

    def run_once(self) -> int:
        """Ring for every waiting lineage; returns how many there were.

        Raises:
            Unavailable: if the broker does not answer; the next run rings.
        """
        names = self._leases.waiting()
        for name in names:
            self._doorbell.ring(name, base_digest=self._lineages.lineage(name).settings.base.digest)
        return len(names)
