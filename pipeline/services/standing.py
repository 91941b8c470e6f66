"""Periodic looks of the control worker that become metrics: what waits, and whether the audit chains hold."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from pipeline.domain.audit import GENESIS_HASH, SYSTEM_CHAIN, ChainBreak, first_break
from pipeline.services.ports import LineageStore
from pipeline.telemetry import metrics

if TYPE_CHECKING:
    from pipeline.adapters.sql.audit import SqlAuditStore
    from pipeline.adapters.sql.standing import SqlStanding

log = structlog.get_logger(__name__)

LINES_A_LOOK = 1_000
"""Lines of a chain that one look checks. A chain that grew long takes more looks, and each costs the same."""


class StandingTeller:
    """Sets the gauges of what waits.

    Args:
        store: where it is read.
        kinds: every kind of side effect, so that one of which nothing is owed says 0.
    """

    def __init__(self, store: SqlStanding, *, kinds: tuple[str, ...]) -> None:
        self._store = store
        self._kinds = kinds

    def run_once(self) -> None:
        """Read once and tell."""
        standing = self._store.read()
        for found in standing.lineages:
            metrics.QUEUE_EDITS.labels(lineage=found.lineage, status="received").set(found.num_received)
            metrics.QUEUE_EDITS.labels(lineage=found.lineage, status="claimed").set(found.num_claimed)
            metrics.QUEUE_AGE.labels(lineage=found.lineage).set(found.queue_age_seconds)
            metrics.SNAPSHOTS_WAITING.labels(lineage=found.lineage).set(found.num_candidates)
            metrics.SNAPSHOTS_AGE.labels(lineage=found.lineage).set(found.candidate_age_seconds)
            metrics.LINEAGE_HELD.labels(lineage=found.lineage).set(found.is_held)
        by_kind = {found.kind: found for found in standing.outbox}
        for kind in {*self._kinds, *by_kind}:
            owed = by_kind.get(kind)
            metrics.OUTBOX_OWED.labels(kind=kind).set(owed.num_owed if owed else 0)
            metrics.OUTBOX_AGE.labels(kind=kind).set(owed.age_seconds if owed else 0)
            metrics.OUTBOX_FAILING.labels(kind=kind).set(owed.num_failing if owed else 0)
            metrics.OUTBOX_GIVEN_UP.labels(kind=kind).set(owed.num_given_up if owed else 0)


@dataclass(slots=True)
class _Round:
    """How far one chain was checked since its beginning."""

    until_seq: int
    """The newest line when the round began."""
    seq: int = 0
    hash: str = GENESIS_HASH


class AuditPatrol:
    """Checks the audit chains over and over, a bounded number of lines at a time.

    It finds lines that were changed, put in or taken out. `corrigenda audit verify` does the same at once, and asks the
    anchors in MLflow too.
    """

    def __init__(self, audit: SqlAuditStore, lineages: LineageStore) -> None:
        self._audit = audit
        self._lineages = lineages
        self._rounds: dict[str, _Round] = {}

    def run_once(self) -> None:
        """Check the next lines of every chain."""
        for chain in (SYSTEM_CHAIN, *(lineage.settings.name for lineage in self._lineages.lineages())):
            found = self._look(chain)
            if found is not None:
                metrics.AUDIT_BROKEN.labels(chain=chain).set(1)
                log.error("audit_broken", chain=chain, seq=found.seq, reason=found.reason)

    def _look(self, chain: str) -> ChainBreak | None:
        at = self._rounds.get(chain) or _Round(until_seq=self._audit.head(chain)[0])
        self._rounds.pop(chain, None)  # after a break the next look begins anew
        events = self._audit.events(chain, after_seq=at.seq, limit=LINES_A_LOOK)
        found = first_break(events, after_seq=at.seq, after_hash=at.hash)
        if found is not None:
            return found
        if events:
            at.seq, at.hash = events[-1].seq, events[-1].hash
        if at.seq < at.until_seq:
            if len(events) < LINES_A_LOOK:
                return ChainBreak(chain=chain, seq=at.seq + 1, reason=f"missing; the recorded head is {at.until_seq}")
            self._rounds[chain] = at
            return None
        metrics.AUDIT_BROKEN.labels(chain=chain).set(0)
        metrics.AUDIT_VERIFIED_AT.labels(chain=chain).set(time.time())
        return None
