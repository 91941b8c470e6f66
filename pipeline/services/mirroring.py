"""Brings the registry up to what the database says: the handlers of two kinds of outbox item.

Each handler reaches a goal, reads what it needs when it runs, and may run twice.
"""

from __future__ import annotations

import structlog

from pipeline.domain.errors import Unavailable
from pipeline.domain.failpoints import failpoint
from pipeline.services.registry_ports import MirrorStore, Registry

log = structlog.get_logger()


class RegistryMirror:
    """Writes snapshots and the champion to the registry."""

    def __init__(self, *, mirror: MirrorStore, registry: Registry) -> None:
        self._mirror = mirror
        self._registry = registry

    def register(self, snapshot_id: str) -> str:
        """Make the model version of a snapshot and record its number; returns it.

        Raises:
            Unavailable: if the registry does not answer; the item stays owed.
        """
        entry = self._mirror.entry(snapshot_id)
        failpoint("register.before")
        version = self._registry.register(entry)
        failpoint("register.after")
        self._mirror.registered(snapshot_id, version=version)
        log.info("snapshot registered", lineage=entry.lineage.settings.name, seq=entry.snapshot.seq, version=version)
        return version

    def champion(self, lineage: str) -> None:
        """Point the alias `champion` to what the database says now.

        Raises:
            Unavailable: if the champion has no model version yet; the item stays owed.
        """
        wanted = self._mirror.champion_mirror(lineage)
        if wanted.snapshot_id is not None and wanted.version is None:
            raise Unavailable(
                f"expected a model version of the champion of {lineage}, it is not registered yet",
                snapshot_id=wanted.snapshot_id,
            )
        self._registry.point_champion(lineage, wanted.version)
        failpoint("champion.after")
        log.info("champion mirrored", lineage=lineage, version=wanted.version)
