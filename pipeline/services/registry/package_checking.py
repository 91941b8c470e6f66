"""Compares what the registry holds of each lineage with what the database says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.domain.errors import IntegrityBroken, LoginRefused, Misconfigured
from pipeline.domain.snapshots import Snapshot
from pipeline.services.ports import LineageStore, SnapshotStore
from pipeline.services.registry.registry_ports import Registry

OF_BEFORE = "it is from before digests of files were kept; `corrigenda register-again` makes one that has its own"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageCheck:
    """What was found of one model version."""

    lineage: str
    """Name of the lineage."""
    seq: int
    """Place of the snapshot."""
    version: str
    """The model version."""
    fault: str | None
    """What is wrong, in one sentence; None if every file is what was registered."""
    is_bound: bool
    """Whether the database knows what its files have to be; versions of before are bound by nothing."""


class PackageChecker:
    """Fetches model versions and checks every file; nothing of them is run."""

    def __init__(self, *, lineages: LineageStore, snapshots: SnapshotStore, registry: Registry) -> None:
        self._lineages = lineages
        self._snapshots = snapshots
        self._registry = registry

    def check(self, lineage: str, *, every: bool = False) -> Iterator[PackageCheck]:
        """Check the versions of the champion and of the head, or every version of a lineage.

        Raises:
            UnknownLineage: if there is no such lineage.
            Unavailable, LoginRefused: if the registry does not answer, or not to us.
        """
        for snapshot in self._chosen(lineage, every=every):
            version = snapshot.registry_version
            if version is None:
                continue
            is_bound = snapshot.package_digest is not None
            fault = self._fault(lineage, version, snapshot) if is_bound else OF_BEFORE
            yield PackageCheck(lineage=lineage, seq=snapshot.seq, version=version, fault=fault, is_bound=is_bound)

    def _chosen(self, lineage: str, *, every: bool) -> list[Snapshot]:
        found = self._lineages.lineage(lineage)
        if every:
            return list(self._snapshots.snapshots(lineage))
        chosen = {found.champion_id, found.head_id} - {None}
        return sorted((self._snapshots.snapshot(lineage, str(one)) for one in chosen), key=lambda one: one.seq)

    def _fault(self, lineage: str, version: str, snapshot: Snapshot) -> str | None:
        expected = str(snapshot.package_digest)
        found = self._registry.find(lineage, version)
        if found is None:
            return "it, or the model that it points to, is not in MLflow any more"
        if (found.snapshot_id, found.digest, found.package_digest) != (snapshot.snapshot_id, snapshot.digest, expected):
            return "its tags are not those that it was registered with"
        try:
            self._registry.check_package(lineage, version, expected)
        except LoginRefused:
            raise
        except (IntegrityBroken, Misconfigured) as error:
            return str(error)
        return None
