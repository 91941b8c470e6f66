"""The alias `champion`: points it to what the database says, and puts it back when somebody's hand moves it.

What may be there without anybody's hand in it is kept in the database: what was written last, and what is about to be.
So a move by hand is told from a write of our own, also while a champion is owed.
"""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from pipeline.domain.errors import Unavailable
from pipeline.domain.failpoints import failpoint
from pipeline.services.registry.registry_ports import ChampionMirror, Displaced, MirrorStore, Registry
from pipeline.telemetry import tracing
from pipeline.telemetry.metrics import REGISTRY_REPAIRS

log = structlog.get_logger()

ACTOR = "reconciler"
HOW_TO_APPROVE = (
    "Only Corrigenda moves the alias champion, and it has put it back to {back}. To make a version live, give it the "
    "alias approved, or the tag approval=approved, with your name in approval.actor and why in approval.reason."
)


class ChampionAlias:
    """Keeps the alias of each lineage; two at once do no harm."""

    def __init__(self, *, mirror: MirrorStore, registry: Registry) -> None:
        self._mirror = mirror
        self._registry = registry

    def point(self, lineage: str) -> None:
        """Point the alias to what the database says now: the handler of a debt.

        Raises:
            Unavailable: if the champion has no usable model version yet; the item stays owed.
        """
        wanted = self._mirror.champion_mirror(lineage)
        if not wanted.is_registered or self._is_missing(lineage, wanted):
            raise Unavailable(
                f"expected a model version of the champion of {lineage}, it is not registered yet",
                snapshot_id=str(wanted.snapshot_id),
            )
        found = self._registry.champion(lineage)
        if wanted.putting_back is not None or _is_by_hand(wanted, found):
            self._put_back(lineage, _displaced(wanted, found, back=wanted.version))
            return
        with tracing.span(
            "snapshot.live", parent=wanted.traceparent, lineage=lineage, version=wanted.version or "base"
        ):
            self._mirror.pointing(lineage, wanted.version)
            self._registry.point_champion(lineage, wanted.version)
            failpoint("champion.after")
            self._mirror.pointed(lineage, wanted.version)
        log.info("champion mirrored", lineage=lineage, version=wanted.version)

    def guard(self, lineage: str) -> bool:
        """Put right what a hand has done to the alias or to the champion's version; True if there was something."""
        wanted = self._mirror.champion_mirror(lineage)
        if self._is_missing(lineage, wanted):
            return True
        found = self._registry.champion(lineage)
        if wanted.putting_back is None and not _is_by_hand(wanted, found):
            if _is_settled(wanted) and wanted.written != (wanted.version,):
                self._repoint(lineage, wanted)  # a write of our own that came late, or one that was not recorded
            return False
        if self._mirror.champion_mirror(lineage) != wanted:  # the champion moved between the two looks
            return False
        back = wanted.version if wanted.is_registered else self._last_written(lineage, wanted)
        self._put_back(lineage, _displaced(wanted, found, back=back))
        return True

    def _is_missing(self, lineage: str, wanted: ChampionMirror) -> bool:
        """Look for the champion's version; if it cannot be used, forget it and owe another."""
        if wanted.version is None or wanted.snapshot_id is None:
            return False
        reason = self._what_is_wrong(lineage, wanted.version, wanted)
        if reason is None:
            return False
        self._mirror.pointing(lineage, None)  # MLflow takes the alias off with the version
        if self._mirror.unregistered(wanted.snapshot_id, version=wanted.version, actor=ACTOR, reason=reason):
            REGISTRY_REPAIRS.labels(lineage=lineage, kind="version_missing").inc()
            log.warning("champion is missing and registered again", lineage=lineage, reason=reason)
        return True

    def _what_is_wrong(self, lineage: str, version: str, wanted: ChampionMirror) -> str | None:
        found = self._registry.find(lineage, version)
        if found is None:
            return f"version {version} of {lineage}, or the model that it points to, was deleted or renamed"
        if found.snapshot_id != wanted.snapshot_id:
            return f"version {version} of {lineage} does not carry the id of its snapshot any more"
        if wanted.package_digest is not None and found.package_digest != wanted.package_digest:
            return f"version {version} of {lineage} does not carry the digest of its files any more"
        return None

    def _last_written(self, lineage: str, wanted: ChampionMirror) -> str | None:
        """Return where the alias was before, if that version is still there; the champion itself has none yet."""
        there = (version for version in wanted.written or () if version and self._registry.find(lineage, version))
        return next(there, None)

    def _put_back(self, lineage: str, displaced: Displaced) -> None:
        # What is to be done is kept first and audited last: whoever comes after a death in between does both.
        self._mirror.putting_back(lineage, displaced)
        self._registry.point_champion(lineage, displaced.back)
        failpoint("champion.put_back")
        self._mirror.put_back(lineage, displaced, actor=ACTOR)
        marked = displaced.found or displaced.back
        if marked is not None:
            back = f"version {displaced.back}" if displaced.back else "none, for the base"
            text = f"{datetime.now(UTC).isoformat(timespec='seconds')}: {HOW_TO_APPROVE.format(back=back)}"
            self._registry.note(lineage, marked, text=text)
        REGISTRY_REPAIRS.labels(lineage=lineage, kind="champion_moved").inc()
        log.warning("champion was moved by hand and put back", lineage=lineage, found=displaced.found)
        now = self._mirror.champion_mirror(lineage)
        if _is_settled(now) and now.version != displaced.back:
            self._repoint(lineage, now)  # an approval was mirrored while we wrote: the newer one stands

    def _repoint(self, lineage: str, wanted: ChampionMirror) -> None:
        self._registry.point_champion(lineage, wanted.version)
        self._mirror.pointed(lineage, wanted.version)


def _is_settled(wanted: ChampionMirror) -> bool:
    return not wanted.is_owed and wanted.is_registered


def _is_by_hand(wanted: ChampionMirror, found: str | None) -> bool:
    """Return whether the alias is neither what it should be nor what Corrigenda may have written."""
    if wanted.is_registered and found == wanted.version:
        return False
    # Of lineages from before that was kept, nothing is known until the first champion is mirrored.
    return found not in wanted.written if wanted.written is not None else _is_settled(wanted)


def _displaced(wanted: ChampionMirror, found: str | None, *, back: str | None) -> Displaced:
    begun = wanted.putting_back
    return Displaced(found=begun.found if begun is not None else found, back=back)
