"""Snapshots in PostgreSQL: one transaction writes each, and plans say what files one is put together from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select

from pipeline.adapters.file_artifacts import FileArtifacts
from pipeline.adapters.sql.active_sets import rows_at
from pipeline.adapters.sql.approving.resolving import before
from pipeline.adapters.sql.commit import write_snapshot
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.rows import artifact_of, is_uuid, snapshot_of
from pipeline.adapters.sql.database.tables import gate_reports, lineages, snapshots
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.domain.errors import UnknownLineage, UnknownRecord
from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.lineages import Lease, TrainedArtifacts
from pipeline.domain.rank_api import FileRef, LedgerPlan, LedgerRows, LoadPlan, TrainedFiles
from pipeline.domain.snapshots import Artifact, Basis, DigestForm, DigestPath, Snapshot
from pipeline.services.ports import NewSnapshot


class SqlSnapshotStore:
    """Writes snapshots and says how each is loaded."""

    def __init__(self, engine: Engine, artifacts: FileArtifacts) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._lineages = SqlLineageStore(engine)

    def commit(self, lease: Lease, new: NewSnapshot) -> Snapshot:
        """Write the snapshot, its active set, its report, edit statuses, audit and outbox rows in one transaction.

        Raises:
            LeaseLost: if the lease is no longer ours, or the head is no longer the parent.
            InvalidInput: if its report does not pass.
        """
        with transaction(self._engine) as connection:
            return snapshot_of(write_snapshot(connection, lease, new), lease.lineage)

    def load_plan(self, lineage: str, *, snapshot_id: str | None) -> LoadPlan:
        """Return the weights of a snapshot (None: the base): nearest accumulators and deltas above; without a ledger.

        Raises:
            UnknownRecord: if the snapshot is not of this lineage.
            IntegrityBroken: if a file is missing or changed.
        """
        settings = self._lineages.lineage(lineage).settings
        stack: Sequence[Row[Any]] = ()
        if snapshot_id is not None:
            with transaction(self._engine) as connection:
                stack = _stack(connection, _of_lineage(connection, lineage, snapshot_id))
        accumulator = stack[0].accumulator if stack else None
        return LoadPlan(
            base=settings.base,
            lineage=lineage,
            editor=settings.editor,
            snapshot_id=snapshot_id,
            digest=stack[-1].digest if stack else settings.base.digest,
            accumulator=self._file(artifact_of(accumulator)) if accumulator else None,
            deltas=tuple(self._file(artifact_of(row.delta)) for row in stack[1 if accumulator else 0 :]),
        )

    def ledger_plan(self, lineage: str, *, snapshot_id: str | None) -> LedgerPlan:
        """Return what edits on a snapshot are made with: rows of every active edit, prior, suite, trained editor.

        The files of rows are not read here: whoever opens one checks its digest.

        Raises:
            UnknownRecord: if the snapshot is not of this lineage.
            IntegrityBroken: if another file is missing or changed.
        """
        settings = self._lineages.lineage(lineage).settings
        active: Sequence[Row[Any]] = ()
        strength: float | None = None
        if snapshot_id is not None:
            with transaction(self._engine) as connection:
                top = _of_lineage(connection, lineage, snapshot_id)
                active, strength = rows_at(connection, top.lineage_id, top.seq), top.prior_strength
        return LedgerPlan(
            rows=tuple(self._rows([(row.edit_id, row.rows) for row in active])),
            prior=self._file(settings.prior),
            reference=self._file(settings.reference),
            trained=self._trained(settings.trained) if settings.trained else None,
            prior_strength=strength,
        )

    def ledger_before(self, lineage: str, *, undone_id: str) -> tuple[float | None, tuple[LedgerRows, ...]]:
        """Return the prior's strength, and the rows of the head's edits, as if a snapshot had not solved them anew.

        The strength is None for that of the settings; there are no rows where they had stayed as they were.

        Raises:
            UnknownRecord: if the snapshot is not of this lineage.
        """
        with transaction(self._engine) as connection:
            of = _of_lineage(connection, lineage, undone_id)
            then = before(connection, of.lineage_id, undone_id)
            head = _row(connection, str(_lineage_row(connection, lineage).head_snapshot_id))
            active = rows_at(connection, of.lineage_id, head.seq) if then.rows is not None else ()
        # An edit that came back or was made again since has rows of its own; those of before were made otherwise.
        known = then.rows or {}
        back = [
            (row.edit_id, known.get(row.edit_id, row.rows) if row.made_seq < then.seq else row.rows) for row in active
        ]
        return then.strength, tuple(self._rows(back))

    def digest_path(self, lineage: str, snapshot_id: str) -> DigestPath:
        """Return how the digest of a snapshot follows from those of the deltas that it is loaded from.

        Raises:
            UnknownRecord: if the snapshot is not of this lineage.
        """
        base_digest = self._lineages.lineage(lineage).settings.base.digest
        with transaction(self._engine) as connection:
            stack = _stack(connection, _of_lineage(connection, lineage, snapshot_id))
            listed = [row for row in stack if row.digest_form == DigestForm.list]
            above = tuple(row.delta_digest for row in stack if row.digest_form == DigestForm.chain)
            if listed:
                # Such a digest counts from the base, or the rebuild, on, below what is loaded.
                first = _last(connection, listed[-1], snapshots.c.basis == Basis.base) or 1
                below = tuple(row.delta_digest for row in _up_to(connection, listed[-1], from_seq=first))
                return DigestPath(start=base_digest, listed=below, chained=above)
            parent = select(snapshots.c.digest).where(snapshots.c.snapshot_id == stack[0].parent_id)
            return DigestPath(start=connection.scalar(parent) or base_digest, listed=(), chained=above)

    def snapshot(self, lineage: str, ref: str) -> Snapshot:
        """Return the snapshot with an id or a seq, or the one that is `head` or `champion`.

        Raises:
            UnknownLineage: if there is no such lineage.
            UnknownRecord: if there is no such snapshot.
        """
        with transaction(self._engine) as connection:
            of = _lineage_row(connection, lineage)
            query = select(snapshots).where(snapshots.c.lineage_id == of.lineage_id, _matches(of, ref))
            row = connection.execute(query).one_or_none()
        if row is None:
            message = f"expected a snapshot of {lineage!r} (id, seq, head or champion), got {ref!r}"
            raise UnknownRecord(message, lineage=lineage, snapshot=ref)
        return snapshot_of(row, lineage)

    def snapshots(self, lineage: str) -> tuple[Snapshot, ...]:
        """Return every snapshot of a lineage, oldest first.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            of = _lineage_row(connection, lineage)
            query = select(snapshots).where(snapshots.c.lineage_id == of.lineage_id).order_by(snapshots.c.seq)
            return tuple(snapshot_of(row, lineage) for row in connection.execute(query))

    def waiting(self, lineage: str, *, above_seq: int, limit: int) -> tuple[Snapshot, ...]:
        """Return candidates above the champion that nobody has decided about yet, newest first."""
        columns = snapshots.c
        with transaction(self._engine) as connection:
            of = _lineage_row(connection, lineage)
            mine = (columns.lineage_id == of.lineage_id) & (columns.seq > above_seq)
            query = select(snapshots).where(mine, columns.status == SnapshotStatus.candidate)
            rows = connection.execute(query.order_by(columns.seq.desc()).limit(limit)).all()
        return tuple(snapshot_of(row, lineage) for row in rows)

    def newest_version(self, lineage: str) -> Snapshot | None:
        """Return the newest candidate above the champion that has a model version, else the newest snapshot with one.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        columns = snapshots.c
        with transaction(self._engine) as connection:
            of = _lineage_row(connection, lineage)
            mine = (columns.lineage_id == of.lineage_id) & columns.registry_version.is_not(None)
            live = select(columns.seq).where(columns.snapshot_id == of.champion_snapshot_id).scalar_subquery()
            waits = (columns.status == SnapshotStatus.candidate) & (columns.seq > func.coalesce(live, 0))
            newest = select(snapshots).order_by(columns.seq.desc()).limit(1)
            found = (
                connection.execute(newest.where(mine, waits)).first() or connection.execute(newest.where(mine)).first()
            )
        return snapshot_of(found, lineage) if found else None

    def report(self, gate_report_id: str) -> Mapping[str, Any]:
        """Return a gate report as JSON.

        Raises:
            UnknownRecord: if there is none.
        """
        query = select(gate_reports.c.report).where(gate_reports.c.gate_report_id == gate_report_id)
        with transaction(self._engine) as connection:
            report = connection.scalar(query) if is_uuid(gate_report_id) else None
        if report is None:
            message = f"expected the id of a gate report, got {gate_report_id!r}"
            raise UnknownRecord(message, gate_report_id=gate_report_id)
        found: Mapping[str, Any] = report
        return found

    def _rows(self, active: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[LedgerRows]:
        """Runs of edits whose rows are in one file; the order of the edits decides the bits of their sums."""
        for _, run in groupby(active, lambda pair: pair[1]["uri"]):
            together = list(run)
            artifact = artifact_of(together[0][1])
            path = self._artifacts.path(artifact, is_checked=False)
            file = FileRef(path=str(path), digest=artifact.digest)
            yield LedgerRows(file=file, edit_ids=tuple(edit_id for edit_id, _ in together))

    def _trained(self, trained: TrainedArtifacts) -> TrainedFiles:
        return TrainedFiles(name=trained.name, card=self._file(trained.card), tensors=self._file(trained.tensors))

    def _file(self, artifact: Artifact) -> FileRef:
        return FileRef(path=str(self._artifacts.path(artifact)), digest=artifact.digest)


def _stack(connection: Connection, top: Row[Any]) -> Sequence[Row[Any]]:
    """Return a snapshot and those below it whose deltas it is loaded from, oldest first.

    The first one has stored its accumulators, which hold its own delta, or stands on the base.
    """
    starts = snapshots.c.accumulator.is_not(None) | (snapshots.c.basis == Basis.base)
    return _up_to(connection, top, from_seq=_last(connection, top, starts) or 1)


def _last(connection: Connection, top: Row[Any], condition: Any) -> int | None:
    """Return the highest seq at or below a snapshot that meets a condition."""
    query = select(func.max(snapshots.c.seq)).where(
        snapshots.c.lineage_id == top.lineage_id, snapshots.c.seq <= top.seq, condition
    )
    seq: int | None = connection.scalar(query)
    return seq


def _up_to(connection: Connection, top: Row[Any], *, from_seq: int) -> Sequence[Row[Any]]:
    """Return snapshots in order: without forks, ancestry is the order of seq."""
    query = select(snapshots).where(
        snapshots.c.lineage_id == top.lineage_id, snapshots.c.seq.between(from_seq, top.seq)
    )
    return connection.execute(query.order_by(snapshots.c.seq)).all()


def _of_lineage(connection: Connection, lineage: str, snapshot_id: str) -> Row[Any]:
    of, row = _lineage_row(connection, lineage), _row(connection, snapshot_id)
    if row.lineage_id != of.lineage_id:
        message = f"expected a snapshot of {lineage!r}, got {snapshot_id}, which is of another lineage"
        raise UnknownRecord(message, lineage=lineage, snapshot_id=snapshot_id)
    return row


def _row(connection: Connection, snapshot_id: str) -> Row[Any]:
    query = select(snapshots).where(snapshots.c.snapshot_id == snapshot_id)
    row = connection.execute(query).one_or_none() if is_uuid(snapshot_id) else None
    if row is None:
        raise UnknownRecord(f"expected the id of a snapshot, got {snapshot_id!r}", snapshot_id=snapshot_id)
    return row


def _lineage_row(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(select(lineages).where(lineages.c.name == name)).one_or_none()
    if row is None:
        raise UnknownLineage(f"expected the name of a lineage, got {name!r}", lineage=name)
    return row


def _matches(of: Row[Any], ref: str) -> Any:
    if ref == "head":
        return snapshots.c.snapshot_id == of.head_snapshot_id
    if ref == "champion":
        return snapshots.c.snapshot_id == of.champion_snapshot_id
    if ref.isascii() and ref.isdigit() and len(ref) < 10:
        return snapshots.c.seq == int(ref)
    return snapshots.c.snapshot_id == (ref if is_uuid(ref) else None)
