"""Everything that one new snapshot writes, inside one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, literal, or_, select, update

from pipeline.adapters.sql.active_sets import begin_activations, end_activations, move_rows
from pipeline.adapters.sql.approving.decisions import finish_removal, has_rejection_besides
from pipeline.adapters.sql.approving.holds import ROLLED_BACK, UNDO_FAILED, lift
from pipeline.adapters.sql.approving.resolving import files_of_rows, owe_upkeep
from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.rows import artifact_json, insert_report
from pipeline.adapters.sql.database.tables import (
    edit_batches,
    edit_requests,
    is_owed,
    lineages,
    removals,
    snapshots,
    status_is,
)
from pipeline.adapters.sql.leases import check
from pipeline.adapters.sql.outbox import owe
from pipeline.adapters.sql.statuses import Move, move, move_snapshots
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput, LeaseLost
from pipeline.domain.lifecycle import EditStatus, RemovalStatus, SnapshotStatus
from pipeline.domain.lineages import Lease, Removal
from pipeline.services.ports import NewSnapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """What the active set gains and loses against the parent's."""

    added: tuple[str, ...]
    """Edits of the batch, and edits that come back."""
    displaced: tuple[tuple[str, str], ...]
    """(edit that goes, edit of the batch that supersedes it)."""
    removed: tuple[str, ...]
    """Edits that a removal takes out."""

    @property
    def gone(self) -> set[str]:
        """Everything that leaves."""
        return {*self.removed, *(old for old, _ in self.displaced)}


def write_snapshot(connection: Connection, lease: Lease, new: NewSnapshot) -> Row[Any]:
    """Write a snapshot as the new head; returns its row.

    Raises:
        LeaseLost: if the lease is no longer ours, or the head is no longer the parent.
        InvalidInput: if the report does not pass, or the snapshot has neither batch nor removal.
    """
    on = check(connection, lease)
    _refuse_unusable(on, lease, new)
    change, seq = _change_of(new), on.seq + 1
    num_left = end_activations(connection, change.gone, seq=seq)
    num_before = select(snapshots.c.num_active).where(snapshots.c.snapshot_id == new.parent_id)
    num_active = (connection.scalar(num_before) or 0) + len(change.added) - num_left
    row = _insert_snapshot(connection, on, lease, new, num_active=num_active)
    rows = artifact_json(new.rows)
    num_activations = begin_activations(
        connection,
        on,
        change.added,
        remade_ids=new.remade_ids,
        snapshot_id=new.snapshot_id,
        seq=seq,
        rows=rows,
    )
    replaced = _replaced_rows(connection, on, new)
    move_rows(connection, new.rewritten_ids, rows)
    _audit_created(connection, on, lease, new, row=row, change=change)
    _move_edits(connection, on, lease, new, change=change)
    _finish_work(connection, on, lease, new, seq=seq, replaced=replaced)
    _retire_if_tainted(connection, on, lease, new)
    owe(
        connection,
        kind="register",
        dedup_key=f"register:{new.snapshot_id}",
        payload={"lineage": on.name, "snapshot_id": new.snapshot_id},
    )
    if new.batch is not None:
        suite_kl = new.report.measurements.candidate.suite_kl
        owe_upkeep(
            connection,
            on,
            strength=row.prior_strength,
            suite_kl=suite_kl,
            num_activations=num_activations,
            actor=lease.owner,
        )
    _ring_if_more_waits(connection, on, new)
    return connection.execute(select(snapshots).where(snapshots.c.snapshot_id == new.snapshot_id)).one()


def _refuse_unusable(on: LockedLineage, lease: Lease, new: NewSnapshot) -> None:
    if on.head_id != new.parent_id:
        message = f"expected the head of {on.name!r} to be {new.parent_id}, got {on.head_id}"
        raise LeaseLost(message, lineage=on.name, owner=lease.owner)
    if not new.report.passed:
        message = f"expected a passing report on snapshot {new.snapshot_id}, got {new.report.verdict}"
        raise InvalidInput(message, snapshot_id=new.snapshot_id)
    if (new.batch is None) == (new.removal is None):
        message = f"expected snapshot {new.snapshot_id} to be of a batch or of a removal, got both or neither"
        raise InvalidInput(message, snapshot_id=new.snapshot_id)


def _change_of(new: NewSnapshot) -> _Change:
    if new.batch is not None:
        added = tuple(edit.edit_id for edit in new.batch.edits)
        displaced = tuple(pair for pair in new.batch.displaced if pair[1] in added)
        return _Change(added=added, displaced=displaced, removed=())
    assert new.removal is not None
    return _Change(added=new.removal.reinstated_ids, displaced=(), removed=new.removal.edit_ids)


def _insert_snapshot(
    connection: Connection, on: LockedLineage, lease: Lease, new: NewSnapshot, *, num_active: int
) -> Row[Any]:
    report_id = insert_report(connection, on.lineage_id, new.report, snapshot_digest=new.digest)
    values: dict[str, Any] = {
        "snapshot_id": new.snapshot_id,
        "lineage_id": on.lineage_id,
        "seq": on.seq + 1,
        "parent_id": new.parent_id,
        "basis": new.basis.value,
        "delta": artifact_json(new.delta),
        "delta_digest": new.delta.digest,
        # none_as_null is not set on the column: None would become the JSON value null.
        **({"accumulator": artifact_json(new.accumulator)} if new.accumulator else {}),
        "digest": new.digest,
        "num_active": num_active,
        "gate_report_id": report_id,
        "batch_id": new.batch.batch_id if new.batch else None,
        "lease_epoch": lease.epoch,
        "traceparent": new.traceparent,
        "prior_strength": _strength_of(connection, new),
    }
    row = connection.execute(insert(snapshots).values(values).returning(snapshots)).one()
    head = {"head_snapshot_id": new.snapshot_id, "seq": row.seq}
    connection.execute(update(lineages).where(lineages.c.lineage_id == on.lineage_id).values(head))
    return row


def _strength_of(connection: Connection, new: NewSnapshot) -> float | None:
    """Return the prior's strength from now on: the parent's, unless the ledger was solved anew with another."""
    if new.prior_strength is not None:
        return new.prior_strength
    of_parent = select(snapshots.c.prior_strength).where(snapshots.c.snapshot_id == new.parent_id)
    strength: float | None = connection.scalar(of_parent)
    return strength


def _audit_created(
    connection: Connection,
    on: LockedLineage,
    lease: Lease,
    new: NewSnapshot,
    *,
    row: Row[Any],
    change: _Change,
) -> None:
    append(
        connection,
        chain=on.name,
        actor=lease.owner,
        action=AuditAction.snapshot_created,
        subject=new.snapshot_id,
        payload={
            "seq": row.seq,
            "parent": new.parent_id,
            "basis": new.basis.value,
            "digest": new.digest,
            "delta_digest": new.delta.digest,
            "gate_report": row.gate_report_id,
            "epoch": lease.epoch,
            "batch": row.batch_id,
            "removal": new.removal.removal_id if new.removal else None,
            "edits": list(change.added),
            "gone": sorted(change.gone),
            "num_active": row.num_active,
            **({"remade": list(new.remade_ids)} if new.remade_ids else {}),
            **_solved_anew(new),
        },
    )


def _solved_anew(new: NewSnapshot) -> dict[str, Any]:
    """Return what an audit line says of a ledger that was solved anew."""
    if new.removal is None or new.removal.resolving is None:
        return {}
    told: dict[str, Any] = {"prior_strength": new.prior_strength, "distance": new.report.measurements.solved_anew}
    told |= {"asked_by": new.removal.actor, "reason": new.removal.reason}
    return {"solved_anew": {**new.removal.resolving.as_json(), **told}}


def _move_edits(connection: Connection, on: LockedLineage, lease: Lease, new: NewSnapshot, *, change: _Change) -> None:
    about = {"snapshot": new.snapshot_id}
    actor, moves = lease.owner, []
    if new.removal is not None:
        actor = new.removal.actor
        gone = EditStatus.reverted if new.removal.rejected_snapshot_id is None else EditStatus.rejected
        reason = new.removal.reason or "no reason given"
        about["removal"] = new.removal.removal_id
        moves += [Move(edit_id=edit_id, to=gone, reason=reason, about=about) for edit_id in change.removed]
    for old, by in change.displaced:
        reason = f"corrected by {by}"
        moves.append(Move(edit_id=old, to=EditStatus.superseded, reason=reason, superseded_by=by, about=about))
    moves += [Move(edit_id=edit_id, to=EditStatus.snapshotted, about=about) for edit_id in change.added]
    move(connection, moves, on=on, actor=actor)


def _replaced_rows(connection: Connection, on: LockedLineage, new: NewSnapshot) -> list[dict[str, Any]] | None:
    """Return the files of rows that others replace, as JSON; None where only the strength changes, or nothing does.

    Should the snapshot be rejected, the rows come back from these; no file that a row of ours names is ever pruned.
    """
    resolving = new.removal.resolving if new.removal is not None else None
    is_replacing = resolving is not None and (resolving.rekeys or resolving.undoes is not None)
    return files_of_rows(connection, on.lineage_id) if is_replacing else None


def _finish_work(
    connection: Connection, on: LockedLineage, lease: Lease, new: NewSnapshot, *, seq: int, replaced: Any
) -> None:
    if new.batch is not None:
        is_batch = edit_batches.c.batch_id == new.batch.batch_id
        connection.execute(update(edit_batches).where(is_batch).values(seconds=dict(new.seconds)))
    if new.removal is not None:
        finish_removal(
            connection,
            new.removal.removal_id,
            status=RemovalStatus.done,
            outcome=f"snapshot {seq}",
            snapshot_id=new.snapshot_id,
            **({"replaced_rows": replaced} if replaced is not None else {}),
        )
        _lift_hold(connection, on, lease, new.removal, seq=seq)


def _lift_hold(connection: Connection, on: LockedLineage, lease: Lease, removal: Removal, *, seq: int) -> None:
    """Lift the hold that a removal is the way out of: after a roll back, or after an undo that failed."""
    anew = removal.resolving
    if removal.rejected_snapshot_id is None and (anew is None or anew.undoes is not None):
        what = "edits were reverted" if anew is None else "an earlier ledger was brought back"
        because = f"{what} by {removal.actor} in snapshot {seq}"
        lift(connection, on, ROLLED_BACK, because=because, actor=lease.owner)
    if anew is not None:
        lift(connection, on, UNDO_FAILED, because=f"the ledger was solved anew in snapshot {seq}", actor=lease.owner)


def _retire_if_tainted(connection: Connection, on: LockedLineage, lease: Lease, new: NewSnapshot) -> None:
    """Retire a snapshot that still holds what was rejected: edits that are to leave, or a ledger that has to stay.

    What ends such a ledger is no part of it, so nothing is retired for ever.
    """
    is_way_out = new.removal is not None and new.removal.resolving is not None
    is_stuck = on.hold is not None and on.hold.startswith(UNDO_FAILED) and not is_way_out
    if is_stuck or has_rejection_besides(connection, on):
        about = {"reason": "holds edits, or the ledger, of a rejected snapshot"}
        retired = SnapshotStatus.retired
        move_snapshots(connection, [new.snapshot_id], retired, on=on, actor=lease.owner, about=about)


def _ring_if_more_waits(connection: Connection, on: LockedLineage, new: NewSnapshot) -> None:
    edits = select(literal(1)).where(edit_requests.c.lineage_id == on.lineage_id, status_is(EditStatus.received))
    owed = select(literal(1)).where(removals.c.lineage_id == on.lineage_id, is_owed())
    if connection.execute(select(or_(edits.exists(), owed.exists()))).scalar_one():
        owe(
            connection,
            kind="doorbell",
            dedup_key=f"doorbell:snapshot:{new.snapshot_id}",
            payload=on.doorbell,
        )
