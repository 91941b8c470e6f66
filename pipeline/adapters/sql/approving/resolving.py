"""Ledgers that are to be solved anew: work that a lineage owes, because somebody asked for it or its upkeep does.

Each is a row of `removals` that takes no edit out. Runs inside the transaction of its caller, on a locked lineage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, select
from sqlalchemy.dialects.postgresql import UUID

from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.tables import edit_rows, is_owed, lineages, removals, snapshots
from pipeline.adapters.sql.outbox import owe
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.counting import counted
from pipeline.domain.ledger.upkeep import LedgerStanding, Owed, Resolving, Standing, due, in_force, why
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

    Where such work is owed already, that is returned and nothing written. What brings a ledger back is owed beside it:
    `decisions.next_removal` lets it go first.

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
    if owed is not None and resolving.undoes is None:
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
        payload={"reason": reason, "head": on.seq, **resolving.as_json()},
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
    # People refuse as gates do: what they rejected or took back is not asked of them again after every batch.
    is_refused = changed is not None and (
        changed.status == RemovalStatus.failed
        or changed.became in (SnapshotStatus.rejected, SnapshotStatus.retired, SnapshotStatus.rolled_back)
        or (changed.seq is not None and changed.seq not in ledgers_in_force(connection, on.lineage_id))
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
        owe_resolving(connection, on, resolving, actor=actor, reason=why(on.upkeep, standing, resolving))


def _newest(connection: Connection, on: LockedLineage, condition: ColumnElement[bool]) -> Row[Any] | None:
    """Return the newest piece of such work of a kind: how it was to be solved, its status, what its snapshot became."""
    query: Select[Any] = (
        select(removals.c.resolving, removals.c.status, snapshots.c.seq, snapshots.c.status.label("became"))
        .outerjoin(snapshots, snapshots.c.snapshot_id == removals.c.snapshot_id)
        .where(removals.c.lineage_id == on.lineage_id, removals.c.resolving.is_not(None), condition)
    )
    return connection.execute(query.order_by(removals.c.requested_at.desc()).limit(1)).one_or_none()


def ledgers_in_force(connection: Connection, lineage_id: str) -> tuple[int, ...]:
    """Return the seqs of the snapshots that were solved anew and whose ledgers the head stands on, oldest first."""
    return in_force(_solved(connection, lineage_id))


def first_rolled_back(connection: Connection, lineage_id: str, *, above_seq: int) -> int | None:
    """Return the first snapshot above a place with a new ledger that was rolled back and is in force; None if none."""
    solved = _solved(connection, lineage_id)
    stood_on = in_force(solved)
    new = [seq for seq, undone in solved if undone is None and seq > above_seq and seq in stood_on]
    query = select(func.min(snapshots.c.seq)).where(
        snapshots.c.lineage_id == lineage_id,
        snapshots.c.seq.in_(new),
        snapshots.c.status == SnapshotStatus.rolled_back,
    )
    first: int | None = connection.scalar(query)
    return first


def _solved(connection: Connection, lineage_id: str) -> list[tuple[int, int | None]]:
    """Return the place of each snapshot that was solved anew, oldest first, and of the one that it undoes."""
    undone = snapshots.alias()
    undoes = removals.c.resolving["undoes"].as_string().cast(UUID(as_uuid=False))
    query = (
        select(snapshots.c.seq, undone.c.seq)
        .select_from(removals)
        .join(snapshots, snapshots.c.snapshot_id == removals.c.snapshot_id)
        .outerjoin(undone, undone.c.snapshot_id == undoes)
        .where(removals.c.lineage_id == lineage_id, removals.c.resolving.is_not(None))
    )
    return [(seq, before) for seq, before in connection.execute(query.order_by(snapshots.c.seq))]


def ledger_standing(connection: Connection, lineage_id: str) -> LedgerStanding:
    """Return when the keys of the head's ledger were read again, and what is owed to the head."""
    query = (
        select(snapshots.c.seq, snapshots.c.created_at, removals.c.resolving, lineages.c.num_activations)
        .join(removals, removals.c.snapshot_id == snapshots.c.snapshot_id)
        .join(lineages, lineages.c.lineage_id == snapshots.c.lineage_id)
        .where(
            removals.c.lineage_id == lineage_id,
            removals.c.resolving["rekeys"].as_boolean(),
            snapshots.c.seq.in_(ledgers_in_force(connection, lineage_id)),
        )
    )
    read = connection.execute(query.order_by(snapshots.c.seq.desc()).limit(1)).one_or_none()
    columns = removals.c.edit_ids, removals.c.resolving, removals.c.actor, removals.c.reason, removals.c.requested_at
    owed: Select[Any] = select(*columns).where(removals.c.lineage_id == lineage_id, is_owed())
    return LedgerStanding(
        rekeyed_seq=read.seq if read is not None else None,
        rekeyed_at=read.created_at if read is not None else None,
        edits_since=read.num_activations - Resolving.from_stored(read.resolving).place if read is not None else None,
        owed=tuple(
            Owed(what=work_words(connection, row), actor=row.actor, reason=row.reason, asked_at=row.requested_at)
            for row in connection.execute(owed.order_by(removals.c.requested_at)).all()
        ),
    )


def work_words(connection: Connection, row: Row[Any]) -> str:
    """Return what a row of `removals` is about, for people."""
    if row.resolving is None:
        return f"{counted(len(row.edit_ids), 'edit')} taken out"
    resolving = Resolving.from_stored(row.resolving)
    if resolving.undoes is None:
        return resolving.words()
    seq = connection.scalar(select(snapshots.c.seq).where(snapshots.c.snapshot_id == resolving.undoes))
    return f"the ledger before snapshot {seq} brought back"


def undo_of(connection: Connection, row: Row[Any]) -> Resolving | None:
    """Return what brings back the ledger before a snapshot, if in that snapshot it was solved anew."""
    return Resolving(undoes=row.snapshot_id) if resolving_of(connection, row) is not None else None


def resolving_of(connection: Connection, row: Row[Any]) -> Row[Any, Any] | None:
    """Return how the ledger was solved anew in a snapshot and which rejection asked for it; None if it was not."""
    query = select(removals.c.resolving, removals.c.rejected_snapshot_id).where(
        removals.c.lineage_id == row.lineage_id,
        removals.c.resolving.is_not(None),
        removals.c.snapshot_id == row.snapshot_id,
    )
    return connection.execute(query).one_or_none()


def check_undo(connection: Connection, on: LockedLineage, snapshot_id: str) -> str | None:
    """Return the rejected snapshot that an undo follows from, if its ledger was rejected; None if a person asks.

    Raises:
        InvalidInput: if the snapshot was not solved anew, can still be rejected, or is undone or about to be.
    """
    query = select(snapshots).where(snapshots.c.lineage_id == on.lineage_id, snapshots.c.snapshot_id == snapshot_id)
    row = connection.execute(query).one_or_none()
    if row is None or resolving_of(connection, row) is None:
        ref = snapshot_id if row is None else row.seq
        message = f"expected a snapshot of {on.name!r} whose ledger was solved anew, got {ref}, which was not"
        raise InvalidInput(message, snapshot_id=snapshot_id)
    if row.status == SnapshotStatus.candidate:
        message = f"expected a snapshot that was decided about, got {row.seq}, a candidate: reject it, or approve it"
        raise InvalidInput(message, snapshot_id=snapshot_id)
    is_asked = is_owed() & (removals.c.resolving["undoes"].as_string() == snapshot_id)
    if connection.scalar(select(removals.c.removal_id).where(removals.c.lineage_id == on.lineage_id, is_asked)):
        message = f"expected that nobody has asked to undo snapshot {row.seq} yet, got requested"
        raise InvalidInput(message, snapshot_id=snapshot_id)
    if row.seq not in ledgers_in_force(connection, on.lineage_id):
        message = f"expected a ledger that the head stands on, got that of snapshot {row.seq}, undone since"
        raise InvalidInput(message, snapshot_id=snapshot_id)
    return snapshot_id if row.status == SnapshotStatus.rejected else None


def files_of_rows(connection: Connection, lineage_id: str) -> list[dict[str, Any]]:
    """Return the files in which the head has its rows, as JSON: each with the edits whose rows are there, in order."""
    query = select(edit_rows.c.edit_id, edit_rows.c.rows).where(
        edit_rows.c.lineage_id == lineage_id, edit_rows.c.until_seq.is_(None)
    )
    found = connection.execute(query.order_by(edit_rows.c.place)).all()
    runs = [list(run) for _, run in groupby(found, lambda row: row.rows["uri"])]
    return [{"rows": run[0].rows, "edits": [row.edit_id for row in run]} for run in runs]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerBefore:
    """The ledger before a snapshot in which it was solved anew."""

    seq: int
    """The snapshot's place."""
    strength: float | None
    """The prior's strength; None for that of the settings."""
    rows: Mapping[str, Any] | None
    """File in which each edit had its rows, as JSON, by edit id; None where they have stayed."""


def before(connection: Connection, lineage_id: str, snapshot_id: str) -> LedgerBefore:
    """Return the ledger before a snapshot in which it was solved anew."""
    of = (
        select(snapshots.c.parent_id, snapshots.c.seq, removals.c.replaced_rows)
        .join(removals, removals.c.snapshot_id == snapshots.c.snapshot_id)
        .where(
            removals.c.lineage_id == lineage_id,
            removals.c.resolving.is_not(None),
            snapshots.c.snapshot_id == snapshot_id,
        )
    )
    row = connection.execute(of).one()
    strength = connection.scalar(select(snapshots.c.prior_strength).where(snapshots.c.snapshot_id == row.parent_id))
    files = row.replaced_rows
    rows = None if files is None else {edit_id: file["rows"] for file in files for edit_id in file["edits"]}
    return LedgerBefore(seq=row.seq, strength=strength, rows=rows)
