"""Registers candidates again whose model version was deleted: links to it would be dead, and none could be approved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import structlog

from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.lineages import Lineage
from pipeline.services.ports import SnapshotStore
from pipeline.services.registry.registry_ports import MirrorStore, Registry
from pipeline.telemetry.metrics import REGISTRY_REPAIRS

log = structlog.get_logger()

ACTOR = "reconciler"
LOOK_EVERY = 60.0
"""Seconds between two looks at one lineage; each is at one candidate, from the newest down, so that it costs the same
however many wait."""
WAITING = (SnapshotStatus.candidate, SnapshotStatus.rolled_back)
"""What may still go live."""


class CandidateVersions:
    """Looks whether the versions of candidates are still there; two at once do no harm.

    Args:
        snapshots: which candidates there are.
        mirror: forgets a version and owes another.
        registry: where the versions are.
        clock: seconds that only grow; for tests.
    """

    def __init__(
        self,
        *,
        snapshots: SnapshotStore,
        mirror: MirrorStore,
        registry: Registry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshots = snapshots
        self._mirror = mirror
        self._registry = registry
        self._clock = clock
        self._looked: dict[str, tuple[float, int]] = {}

    def look(self, lineage: Lineage) -> bool:
        """Look at the next candidate above the champion, if it is time; True if its version was gone.

        Raises:
            Unavailable, LoginRefused: if the registry does not answer, or not to us.
        """
        name, now = lineage.settings.name, self._clock()
        at, last = self._looked.get(name, (-math.inf, 0))
        if now - at < LOOK_EVERY or lineage.head_seq <= lineage.champion_seq:
            return False
        seq = last - 1 if lineage.champion_seq < last - 1 < lineage.head_seq else lineage.head_seq
        self._looked[name] = (now, seq)
        snapshot = self._snapshots.snapshot(name, str(seq))
        version = snapshot.registry_version
        if snapshot.status not in WAITING or version is None or self._registry.find(name, version) is not None:
            return False
        reason = f"version {version} of {name}, or the model that it points to, was deleted or renamed"
        if not self._mirror.unregistered(snapshot.snapshot_id, version=version, actor=ACTOR, reason=reason):
            return False
        REGISTRY_REPAIRS.labels(lineage=name, kind="version_missing").inc()
        log.warning("candidate is missing and registered again", lineage=name, seq=seq, reason=reason)
        return True
