"""What the database says of model versions to a server that is about to load one: their digests, and if they may live.

The server logs in with a role of its own, which reads these columns and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, select

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.tables import lineages, snapshots
from pipeline.domain.lifecycle import SnapshotStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedVersion:
    """The snapshot that a model version is of."""

    snapshot_id: str
    """UUID of the snapshot."""
    seq: int
    """Its place in the lineage's history."""
    digest: str
    """Identity of its weights."""
    package_digest: str | None
    """Digest of the version's files, recorded before they were sent; None for versions from before that was kept."""
    is_approved: bool
    """Whether it is approved now: one that was rolled back is not."""


class SqlSealedVersions:
    """Reads what was recorded of model versions; writes nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def lineages(self) -> tuple[str, ...]:
        """Return the names of every lineage.

        Raises:
            Unavailable: if the database does not answer.
        """
        with transaction(self._engine) as connection:
            return tuple(connection.scalars(select(lineages.c.name).order_by(lineages.c.name)))

    def is_approved(self, snapshot_id: str) -> bool:
        """Return whether a snapshot is approved now; it is asked every few seconds, and found by its key.

        Raises:
            Unavailable: if the database does not answer.
        """
        query = select(snapshots.c.status).where(snapshots.c.snapshot_id == snapshot_id)
        with transaction(self._engine) as connection:
            return connection.scalar(query) == SnapshotStatus.approved

    def sealed(self, lineage: str, version: str) -> SealedVersion | None:
        """Return what was recorded of a version; None if the database knows no such version.

        Raises:
            Unavailable: if the database does not answer.
        """
        columns = ("snapshot_id", "seq", "digest", "package_digest", "status")
        query = (
            select(*(snapshots.c[name] for name in columns))
            .join(lineages, lineages.c.lineage_id == snapshots.c.lineage_id)
            .where(lineages.c.name == lineage, snapshots.c.registry_version == version)
        )
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return SealedVersion(
            snapshot_id=str(row.snapshot_id),
            seq=row.seq,
            digest=row.digest,
            package_digest=row.package_digest,
            is_approved=row.status == SnapshotStatus.approved,
        )
