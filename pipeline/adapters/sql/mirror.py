"""What the registry has to show of a snapshot and of the champion, read from PostgreSQL."""

from __future__ import annotations

from sqlalchemy import Engine, func, literal, select, update

from pipeline.adapters.sql.active_sets import brought_by
from pipeline.adapters.sql.audit import SqlAuditStore, append
from pipeline.adapters.sql.engine import transaction
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.locks import lock_lineage
from pipeline.adapters.sql.rows import edit_of, is_uuid, snapshot_of
from pipeline.adapters.sql.snapshots import SqlSnapshotStore
from pipeline.adapters.sql.tables import lineages, outbox, snapshots
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import UnknownLineage, UnknownRecord
from pipeline.services.ports import ArtifactStore
from pipeline.services.registry_ports import ChampionMirror, RegistryEntry

ACTOR = "registry-mirror"
"""The process that records what the registry was told."""


class SqlMirrorStore:
    """Entries for model versions, and the alias `champion`."""

    def __init__(self, engine: Engine, artifacts: ArtifactStore) -> None:
        self._engine = engine
        self._lineages = SqlLineageStore(engine)
        self._snapshots = SqlSnapshotStore(engine, artifacts)
        self._audit = SqlAuditStore(engine)

    def entry(self, snapshot_id: str) -> RegistryEntry:
        """Everything for one model version.

        Raises:
            UnknownRecord: if there is no such snapshot.
        """
        name = self._lineage_of(snapshot_id)
        with transaction(self._engine) as connection:
            row = connection.execute(select(snapshots).where(snapshots.c.snapshot_id == snapshot_id)).one()
            edits = tuple(edit_of(brought, name) for brought in brought_by(connection, snapshot_id))
        return RegistryEntry(
            lineage=self._lineages.lineage(name),
            snapshot=snapshot_of(row, name),
            plan=self._snapshots.load_plan(name, snapshot_id=snapshot_id),
            digest_path=self._snapshots.digest_path(name, snapshot_id),
            report=self._snapshots.report(row.gate_report_id),
            edits=edits,
            audit_head=self._audit.head(name),
        )

    def registered(self, snapshot_id: str, *, version: str) -> None:
        """Record the version and audit it, once: the first version that is recorded stays.

        Raises:
            UnknownRecord: if there is no such snapshot.
        """
        name = self._lineage_of(snapshot_id)
        is_unmirrored = (snapshots.c.snapshot_id == snapshot_id) & snapshots.c.registry_version.is_(None)
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, name)
            changed = connection.execute(update(snapshots).where(is_unmirrored).values(registry_version=version))
            if changed.rowcount == 0:
                return
            append(
                connection,
                chain=on.name,
                actor=ACTOR,
                action=AuditAction.snapshot_registered,
                subject=snapshot_id,
                payload={"version": version},
            )

    def champion_mirror(self, lineage: str) -> ChampionMirror:
        """What the alias should be, and whether it is still owed.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        owed = select(literal(1)).where(
            outbox.c.kind == "champion",
            outbox.c.done_at.is_(None),
            func.jsonb_extract_path_text(outbox.c.payload, "lineage") == lineage,
        )
        query = (
            select(lineages.c.champion_snapshot_id, snapshots.c.registry_version, owed.exists().label("is_owed"))
            .outerjoin(snapshots, snapshots.c.snapshot_id == lineages.c.champion_snapshot_id)
            .where(lineages.c.name == lineage)
        )
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise UnknownLineage(f"expected the name of a lineage, got {lineage!r}", lineage=lineage)
        return ChampionMirror(
            version=row.registry_version, snapshot_id=row.champion_snapshot_id, is_owed=bool(row.is_owed)
        )

    def _lineage_of(self, snapshot_id: str) -> str:
        query = (
            select(lineages.c.name)
            .join(snapshots, snapshots.c.lineage_id == lineages.c.lineage_id)
            .where(snapshots.c.snapshot_id == snapshot_id)
        )
        with transaction(self._engine) as connection:
            name = connection.scalar(query) if is_uuid(snapshot_id) else None
        if name is None:
            raise UnknownRecord(f"expected the id of a snapshot, got {snapshot_id!r}", snapshot_id=snapshot_id)
        return str(name)
