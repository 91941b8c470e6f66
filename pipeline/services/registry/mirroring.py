"""Brings the registry up to what the database says: the handler of one kind of outbox item.

It reaches a goal, reads what it needs when it runs, and may run twice.
"""

from __future__ import annotations

from functools import partial

import structlog

from pipeline.domain.failpoints import failpoint
from pipeline.services.registry.links import version_link
from pipeline.services.registry.registry_ports import MirrorStore, Registry
from pipeline.telemetry import tracing

log = structlog.get_logger()


class RegistryMirror:
    """Writes snapshots to the registry."""

    def __init__(self, *, mirror: MirrorStore, registry: Registry, pages: str = "") -> None:
        """Name the stores.

        Args:
            mirror: what has to be shown.
            registry: where.
            pages: address of its pages, for the link in the log.
        """
        self._mirror = mirror
        self._registry = registry
        self._pages = pages

    def register(self, snapshot_id: str) -> str:
        """Make the model version of a snapshot and record its number; returns it.

        The digest of its files is recorded before they leave: of what comes back, only that is believed.

        Raises:
            Unavailable: if the registry does not answer; the item stays owed.
        """
        entry = self._mirror.entry(snapshot_id)
        with tracing.span("snapshot.register", parent=entry.snapshot.traceparent, snapshot=snapshot_id):
            failpoint("register.before")
            version = self._registry.register(entry, seal=partial(self._mirror.seal, snapshot_id))
            failpoint("register.after")
            self._mirror.registered(snapshot_id, version=version)
        name = entry.lineage.settings.name
        page = version_link(self._pages, name, version)
        log.info("snapshot registered", lineage=name, seq=entry.snapshot.seq, version=version, page=page)
        return version
