"""Entries for model versions, and what the alias `champion` may be, as the control worker keeps them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Engine, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from pipeline.adapters.file_artifacts import FileArtifacts
from pipeline.adapters.sql.active_sets import brought_by
from pipeline.adapters.sql.approving.surroundings import surroundings_of
from pipeline.adapters.sql.audit import SqlAuditStore, append
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import LockedLineage, lock_lineage
from pipeline.adapters.sql.database.rows import edit_of, is_uuid, snapshot_of
from pipeline.adapters.sql.database.tables import (
    champion_aliases,
    lineages,
    outbox,
    snapshots,
)
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.outbox import owe
from pipeline.adapters.sql.snapshots import SqlSnapshotStore
from pipeline.domain.audit import SYSTEM_CHAIN, AuditAction
from pipeline.domain.errors import UnknownLineage, UnknownRecord
from pipeline.services.registry.registry_ports import ChampionMirror, Displaced, RegistryEntry

ACTOR = "registry-mirror"
"""The process that records what the registry was told."""


class SqlMirrorStore:
    """Entries for model versions, and the alias `champion`."""

    def __init__(self, engine: Engine, artifacts: FileArtifacts) -> None:
        self._engine = engine
        self._lineages = SqlLineageStore(engine)
        self._snapshots = SqlSnapshotStore(engine, artifacts)
        self._audit = SqlAuditStore(engine)

    def entry(self, snapshot_id: str) -> RegistryEntry:
        """Return everything for one model version.

        Raises:
            UnknownRecord: if there is no such snapshot.
        """
        name = self._lineage_of(snapshot_id)
        lineage = self._lineages.lineage(name)
        with transaction(self._engine) as connection:
            row = connection.execute(select(snapshots).where(snapshots.c.snapshot_id == snapshot_id)).one()
            around = surroundings_of(connection, row, champion_seq=lineage.champion_seq)
            edits = tuple(edit_of(brought, name) for brought in brought_by(connection, snapshot_id))
        return RegistryEntry(
            lineage=lineage,
            around=around,
            snapshot=snapshot_of(row, name),
            plan=self._snapshots.load_plan(name, snapshot_id=snapshot_id),
            digest_path=self._snapshots.digest_path(name, snapshot_id),
            report=self._snapshots.report(row.gate_report_id),
            edits=edits,
            audit_head=self._audit.head(name),
            system_audit_head=self._audit.head(SYSTEM_CHAIN),
        )

    def seal(self, snapshot_id: str, package_digest: str) -> None:
        """Record the digest of files that are about to become the snapshot's version.

        Raises:
            UnknownRecord: if there is no such snapshot, or it has a version, whose digest stays.
        """
        is_unmirrored = (snapshots.c.snapshot_id == snapshot_id) & snapshots.c.registry_version.is_(None)
        with transaction(self._engine) as connection:
            change = update(snapshots).where(is_unmirrored).values(package_digest=package_digest)
            if not is_uuid(snapshot_id) or connection.execute(change).rowcount == 0:
                message = f"expected a snapshot without a model version, got {snapshot_id}"
                raise UnknownRecord(message, snapshot_id=snapshot_id)

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
            sealed = select(snapshots.c.package_digest).where(snapshots.c.snapshot_id == snapshot_id)
            append(
                connection,
                chain=on.name,
                actor=ACTOR,
                action=AuditAction.snapshot_registered,
                subject=snapshot_id,
                payload={"version": version, "package_digest": connection.scalar(sealed)},
            )

    def unregistered(self, snapshot_id: str, *, version: str, actor: str, reason: str) -> bool:
        """Forget a version, audit that, and owe another and the alias; False if the version is not the recorded one.

        Raises:
            UnknownRecord: if there is no such snapshot.
        """
        name = self._lineage_of(snapshot_id)
        is_it = (snapshots.c.snapshot_id == snapshot_id) & (snapshots.c.registry_version == version)
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, name)
            forget = update(snapshots).where(is_it).values(registry_version=None, package_digest=None)
            if connection.execute(forget).rowcount == 0:
                return False
            is_champion = on.champion_id == snapshot_id
            line = append(
                connection,
                chain=on.name,
                actor=actor,
                action=AuditAction.champion_missing if is_champion else AuditAction.snapshot_unregistered,
                subject=snapshot_id,
                payload={"version": version, "reason": reason},
            ).seq
            # The audit line names the debts: each time that a version is missing owes them once.
            again = f"{snapshot_id}:{line}"
            owe(connection, kind="register", dedup_key=f"register:{again}", payload={"snapshot_id": snapshot_id})
            if is_champion:
                owe(connection, kind="champion", dedup_key=f"champion:{again}", payload={"lineage": on.name})
        return True

    def ask_again(self, snapshot_id: str, *, version: str, actor: str, reason: str) -> None:
        """Owe another version in place of one; whoever asks may not forget it, the process that registers does."""
        payload = {"snapshot_id": snapshot_id, "version": version, "actor": actor, "reason": reason}
        with transaction(self._engine) as connection:
            owe(connection, kind="reregister", dedup_key=f"reregister:{snapshot_id}:{version}", payload=payload)

    def champion_mirror(self, lineage: str) -> ChampionMirror:
        """Return what the alias should be, and whether it is still owed.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        owed = select(literal(1)).where(
            outbox.c.kind == "champion",
            outbox.c.done_at.is_(None),
            outbox.c.given_up_at.is_(None),
            func.jsonb_extract_path_text(outbox.c.payload, "lineage") == lineage,
        )
        query = (
            select(
                lineages.c.champion_snapshot_id,
                snapshots.c.registry_version,
                snapshots.c.package_digest,
                snapshots.c.traceparent,
                owed.exists().label("is_owed"),
                champion_aliases.c.written,
                champion_aliases.c.putting_back,
            )
            .outerjoin(snapshots, snapshots.c.snapshot_id == lineages.c.champion_snapshot_id)
            .outerjoin(champion_aliases, champion_aliases.c.lineage_id == lineages.c.lineage_id)
            .where(lineages.c.name == lineage)
        )
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise UnknownLineage(f"expected the name of a lineage, got {lineage!r}", lineage=lineage)
        return ChampionMirror(
            version=row.registry_version,
            snapshot_id=row.champion_snapshot_id,
            package_digest=row.package_digest,
            is_owed=bool(row.is_owed),
            written=tuple(version or None for version in row.written) if row.written else None,
            putting_back=Displaced(**row.putting_back) if row.putting_back else None,
            traceparent=row.traceparent,
        )

    def pointing(self, lineage: str, version: str | None) -> None:
        """Record that the alias may be this version from now on, beside what it was."""
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, lineage)
            mine = select(champion_aliases.c.written).where(champion_aliases.c.lineage_id == on.lineage_id)
            kept = connection.scalar(mine) or []
            _keep_alias(connection, on, written=sorted({*kept, version or ""}) if kept else [])

    def pointed(self, lineage: str, version: str | None) -> None:
        """Record that the alias is this version and nothing else."""
        with transaction(self._engine) as connection:
            _keep_alias(connection, lock_lineage(connection, lineage), written=[version or ""])

    def putting_back(self, lineage: str, displaced: Displaced) -> None:
        """Record a move by hand that is about to be put right."""
        with transaction(self._engine) as connection:
            _keep_alias(connection, lock_lineage(connection, lineage), putting_back=asdict(displaced))

    def put_back(self, lineage: str, displaced: Displaced, *, actor: str) -> None:
        """Audit `champion:restored`, unless somebody else has audited this move meanwhile."""
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, lineage)
            mine = champion_aliases.c.lineage_id == on.lineage_id
            if connection.scalar(select(champion_aliases.c.putting_back).where(mine)) != asdict(displaced):
                return
            _keep_alias(connection, on, written=[displaced.back or ""], putting_back=None)
            append(
                connection,
                chain=on.name,
                actor=actor,
                action=AuditAction.champion_restored,
                subject=on.champion_id or "base",
                payload={"found_version": displaced.found, "restored_version": displaced.back},
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


def _keep_alias(connection: Connection, on: LockedLineage, **values: Any) -> None:
    row = {"lineage_id": on.lineage_id, **values}
    connection.execute(
        insert(champion_aliases).values(row).on_conflict_do_update(index_elements=["lineage_id"], set_=values)
    )
