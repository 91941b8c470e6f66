"""Ledgers that are to be solved anew: work that a lineage owes, because somebody asked for it or its upkeep does.

Each is a row of `removals` that takes no edit out. Runs inside the transaction of its caller, on a locked lineage.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, insert, select

from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.tables import edit_rows, is_owed, removals, snapshots
from pipeline.adapters.sql.outbox import owe
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput
from pipeline.domain.ledger.upkeep import Resolving, Standing, due
from pipeline.domain.lifecycle import RemovalStatus, SnapshotStatus
from pipeline.domain.rank_api import EditorSettings


def owe_resolving(
    connection: Connection,
    on: LockedLineage,
    resolving: Resolving,
    *,
    actor: str,
    reason: str,
    rejected_snapshot_id: str | None = None,
) -> tuple[str, Resolving]:
    """Owe it, audit it and ring; return its id and how it is solved anew.

    Where such work is owed already, that is returned and nothing written, but for what brings back the ledger before a
    rejected snapshot.

    Args:
        connection: in the transaction of the caller.
        on: the lineage.
        resolving: how it is solved anew.
        actor: who asks for it.
        reason: why.
        rejected_snapshot_id: the snapshot whose rejection it follows from, if it does.
    """
    query = select(removals.c.removal_id, removals.c.resolving).where(
        removals.c.lineage_id == on.lineage_id, is_owed(), removals.c.resolving.is_not(None)
    )
    owed = connection.execute(query.order_by(removals.c.requested_at.desc()).limit(1)).one_or_none()
    if owed is not None and rejected_snapshot_id is None:
        return owed.removal_id, Resolving.from_stored(owed.resolving)
    # Columns that are left out have defaults: an edit worker may write no others.
    row = {"lineage_id": on.lineage_id, "actor": actor, "reason": reason, "resolving": resolving.as_json()}
    row |= {"rejected_snapshot_id": rejected_snapshot_id} if rejected_snapshot_id else {}
    removal_id: str = connection.execute(insert(removals).values(row).returning(removals.c.removal_id)).scalar_one()
    append(
        connection,
        chain=on.name,
        actor=actor,
        action=AuditAction.rekeying_requested,
        subject=removal_id,
        payload={"reason": reason, **resolving.as_json()},
    )
    owe(connection, kind="doorbell", dedup_key=f"doorbell:removal:{removal_id}", payload=on.doorbell)
    return removal_id, resolving


def owe_upkeep(
    connection: Connection,
    on: LockedLineage,
    *,
    strength: float | None,
    suite_kl: float | None,
    num_activations: int,
    actor: str,
) -> None:
    """Owe what the upkeep of a lineage asks for after a batch, if it does.

    Args:
        connection: in the transaction that commits the batch.
        on: the lineage.
        strength: the prior's strength at the new head; None for that of the settings.
        suite_kl: divergence of the suite from the base, as the gates have measured it.
        num_activations: edits that have come into the head, those of the batch among them.
        actor: the worker.
    """
    if not (on.upkeep.rekey_every or on.upkeep.suite_kl_budget):
        return
    base = EditorSettings.from_stored(on.editor).prior_strength
    rekeyed = _newest(connection, on, removals.c.resolving["rekeys"].as_boolean())
    changed = _newest(connection, on, removals.c.resolving["prior_strength"].as_string().is_not(None))
    # People refuse as gates do: what they rejected is not asked of them again after every batch.
    is_refused = changed is not None and (
        changed.status == RemovalStatus.failed or changed.became in (SnapshotStatus.rejected, SnapshotStatus.retired)
    )
    standing = Standing(
        base_strength=base,
        strength=base if strength is None else strength,
        suite_kl=suite_kl,
        num_activations=num_activations,
        rekeyed_at=Resolving.from_stored(rekeyed.resolving).place if rekeyed is not None else 0,
        refused_at=Resolving.from_stored(changed.resolving).place if changed is not None and is_refused else None,
    )
    resolving = due(on.upkeep, standing)
    if resolving is not None:
        reason = "upkeep: " + resolving.words()
        owe_resolving(connection, on, resolving, actor=actor, reason=reason)


def _newest(connection: Connection, on: LockedLineage, condition: ColumnElement[bool]) -> Row[Any] | None:
    """Return the newest piece of such work of a kind: how it was to be solved, its status, what its snapshot became."""
    query: Select[Any] = (
        select(removals.c.resolving, removals.c.status, snapshots.c.status.label("became"))
        .outerjoin(snapshots, snapshots.c.snapshot_id == removals.c.snapshot_id)
        .where(removals.c.lineage_id == on.lineage_id, removals.c.resolving.is_not(None), condition)
    )
    return connection.execute(query.order_by(removals.c.requested_at.desc()).limit(1)).one_or_none()


def undo_of(connection: Connection, row: Row[Any]) -> Resolving | None:
    """Return what brings back the ledger before a snapshot, if in that snapshot it was solved anew."""
    query = select(removals.c.resolving).where(
        removals.c.lineage_id == row.lineage_id,
        removals.c.resolving.is_not(None),
        removals.c.snapshot_id == row.snapshot_id,
    )
    return Resolving(undoes=row.snapshot_id) if connection.scalar(query) is not None else None


def check_undo(connection: Connection, on: LockedLineage, snapshot_id: str) -> str:
    """Return the id of a rejected snapshot whose undo a person may ask for again.

    Raises:
        InvalidInput: if it was not rejected, was not solved anew, or its undo is owed or done.
    """
    query = select(snapshots).where(snapshots.c.lineage_id == on.lineage_id, snapshots.c.snapshot_id == snapshot_id)
    row = connection.execute(query).one_or_none()
    if row is None or row.status != SnapshotStatus.rejected or undo_of(connection, row) is None:
        message = f"expected a rejected snapshot of {on.name!r} whose ledger was solved anew, got {snapshot_id}"
        raise InvalidInput(message, snapshot_id=snapshot_id)
    undo = removals.c.resolving["undoes"].as_string() == snapshot_id
    still = select(removals.c.status).where(
        removals.c.lineage_id == on.lineage_id, undo, removals.c.status != RemovalStatus.failed
    )
    status = connection.scalar(still.limit(1))
    if status is not None:
        message = f"expected that the undo of snapshot {row.seq} failed, got {status}"
        raise InvalidInput(message, snapshot_id=snapshot_id)
    return snapshot_id


def files_of_rows(connection: Connection, lineage_id: str) -> list[dict[str, Any]]:
    """Return the files in which the head has its rows, as JSON: each with the edits whose rows are there, in order."""
    query = select(edit_rows.c.edit_id, edit_rows.c.rows).where(
        edit_rows.c.lineage_id == lineage_id, edit_rows.c.until_seq.is_(None)
    )
    found = connection.execute(query.order_by(edit_rows.c.place)).all()
    runs = [list(run) for _, run in groupby(found, lambda row: row.rows["uri"])]
    return [{"rows": run[0].rows, "edits": [row.edit_id for row in run]} for run in runs]


def before(connection: Connection, lineage_id: str, snapshot_id: str) -> tuple[float | None, Mapping[str, Any] | None]:
    """Return the strength before a snapshot in which the ledger was solved anew, and where each edit had its rows.

    The strength is None for that of the settings; the rows are None where they had stayed.
    """
    of = (
        select(snapshots.c.parent_id, removals.c.replaced_rows)
        .join(removals, removals.c.snapshot_id == snapshots.c.snapshot_id)
        .where(
            removals.c.lineage_id == lineage_id,
            removals.c.resolving.is_not(None),
            snapshots.c.snapshot_id == snapshot_id,
        )
    )
    row = connection.execute(of).one()
    strength = connection.scalar(select(snapshots.c.prior_strength).where(snapshots.c.snapshot_id == row.parent_id))
    if row.replaced_rows is None:
        return strength, None
    return strength, {edit_id: file["rows"] for file in row.replaced_rows for edit_id in file["edits"]}
