"""Decisions of people in PostgreSQL, each one transaction: approve, reject, roll back, revert, retry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, select, text

from pipeline.adapters.sql.active_sets import active_among
from pipeline.adapters.sql.approving.checks import standing_of
from pipeline.adapters.sql.approving.decisions import about, carry_out, owed_removals, request_removal
from pipeline.adapters.sql.approving.resolving import check_undo, owe_resolving
from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import LockedLineage, lineage_id_of, lock_lineage
from pipeline.adapters.sql.database.rows import is_uuid
from pipeline.adapters.sql.database.tables import approvals, edit_requests, snapshots, status_is
from pipeline.adapters.sql.outbox import owe
from pipeline.adapters.sql.statuses import Move, move, restore_queued
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput, UnknownRecord
from pipeline.domain.ledger.upkeep import Resolving
from pipeline.domain.lifecycle import EditStatus, SnapshotStatus
from pipeline.domain.review.approvals import (
    AUTOMATIC,
    Approval,
    Channel,
    Decision,
    Outcome,
    Standing,
    approvers,
    is_last_needed,
    refusal,
)


class SqlReviewStore:
    """Approve, reject, roll back, revert, retry."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def decide(self, approval: Approval) -> Outcome:
        """Check with `approvals.refusal` on locked rows, and carry out: statuses, champion, audit, outbox, removal.

        A refusal is recorded too (`approval:refused`). The same decision twice is accepted and changes nothing.

        Raises:
            UnknownLineage: if there is no such lineage.
            UnknownRecord: if the snapshot is not of this lineage.
            InvalidInput: if it is an endorsement, which an approval becomes where the policy asks for more people.
        """
        if approval.decision is Decision.endorsed:
            raise InvalidInput("expected that somebody approves, rejects or rolls back, got an endorsement")
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, approval.lineage)
            row = _locked_snapshot(connection, on, approval.snapshot_id)
            before = _same_decision(connection, on, row, approval)
            if before is not None:
                return Outcome(is_accepted=True, reason="", approval_id=before)
            standing = standing_of(connection, on, row)
            if (reason := refusal(approval, standing)) is not None:
                approval_id = _record(connection, on, approval, refused=reason)
                _audit_refusal(connection, on, approval, approval_id=approval_id, reason=reason)
                return Outcome(is_accepted=False, reason=reason, approval_id=approval_id)
            if approval.decision is Decision.approved and not is_last_needed(approval, standing):
                return _endorse(connection, on, replace(approval, decision=Decision.endorsed), standing)
            approval_id = _record(connection, on, approval, refused=None)
            carry_out(connection, on, row, approval, approval_id=approval_id)
            return _accepted(approval, standing, approval_id)

    def approve_automatically(self, lineage: str) -> Outcome | None:
        """Make the head live where the lineage's policy does that without a person; else return why it does not.

        Nothing is recorded where a person has to decide. None where there is nothing to decide, and while the lineage
        is held.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, lineage)
            # A held lineage waits for a person: what a batch under way commits after a roll back does not go live.
            if not on.approval.is_automatic or on.hold is not None or on.head_id in (None, on.champion_id):
                return None
            row = _locked_snapshot(connection, on, str(on.head_id))
            if row.status != SnapshotStatus.candidate:
                return None
            approval = Approval(
                lineage=on.name,
                snapshot_id=row.snapshot_id,
                snapshot_digest=row.digest,
                champion_seen=on.champion_id,
                decision=Decision.approved,
                actor=AUTOMATIC,
                is_claimed=False,
                reason=on.approval.words(),
                channel=Channel.policy,
            )
            standing = standing_of(connection, on, row)
            if (reason := refusal(approval, standing)) is not None:
                return Outcome(is_accepted=False, reason=reason)
            approval_id = _record(connection, on, approval, refused=None)
            carry_out(connection, on, row, approval, approval_id=approval_id)
            return Outcome(is_accepted=True, reason="", approval_id=approval_id)

    def reviewer(self) -> str | None:
        """Return the name of the reviewer who logged in to the database; None if it was no reviewer."""
        with transaction(self._engine) as connection:
            name: str | None = connection.scalar(text("SELECT current_reviewer()"))
            return name

    def request_revert(self, lineage: str, edit_ids: Sequence[str], *, actor: str, reason: str) -> tuple[str, ...]:
        """Owe a removal of active edits (queued ones are `reverted` at once); returns the removal ids.

        Edits whose removal a person asked for before are not asked for again; the id of that removal is returned.

        Raises:
            UnknownRecord: if an id names no edit of this lineage.
            InvalidInput: if an edit is neither queued nor active; nothing was written.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, lineage)
            wanted = list(dict.fromkeys(edit_ids))
            statuses = _statuses(connection, on, wanted)
            active = active_among(connection, wanted)
            _refuse_gone(statuses, active)
            queued = [edit_id for edit_id in wanted if statuses[edit_id] is EditStatus.received]
            moves = [Move(edit_id=edit_id, to=EditStatus.reverted, reason=reason) for edit_id in queued]
            move(connection, moves, on=on, actor=actor)
            restore_queued(connection, queued, on=on, actor=actor)
            held = [edit_id for edit_id in wanted if edit_id in active]
            return _owe_removal(connection, on, held, actor=actor, reason=reason)

    def request_resolving(
        self, lineage: str, resolving: Resolving, *, actor: str, reason: str
    ) -> tuple[str, Resolving]:
        """Owe a ledger that is solved anew; return the id and the manner of what is owed, which may be older.

        Raises:
            UnknownLineage: if there is no such lineage.
            InvalidInput: if its head holds no edit, or the snapshot to be undone was not rejected or not solved anew.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, lineage)
            held = connection.scalar(select(snapshots.c.num_active).where(snapshots.c.snapshot_id == on.head_id))
            if not held:
                raise InvalidInput(f"expected a lineage whose head holds edits, got {lineage!r}", lineage=lineage)
            if resolving.undoes is not None:
                rejected = check_undo(connection, on, resolving.undoes)
                return owe_resolving(
                    connection, on, resolving, actor=actor, reason=reason, rejected_snapshot_id=rejected
                )
            resolving = replace(resolving, place=on.num_activations)
            return owe_resolving(connection, on, resolving, actor=actor, reason=reason)

    def dead(self, lineage: str, *, because: str = "", limit: int) -> tuple[str, ...]:
        """Return ids of dead edits whose reason contains a text, in any case of letters; the oldest first.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            query = select(edit_requests.c.edit_id).where(
                edit_requests.c.lineage_id == lineage_id_of(connection, lineage),
                status_is(EditStatus.dead),
                func.strpos(func.lower(func.coalesce(edit_requests.c.reason, "")), func.lower(because)) > 0,
            )
            found = connection.execute(query.order_by(edit_requests.c.edit_id).limit(limit))
            return tuple(found.scalars())

    def request_retry(self, lineage: str, edit_ids: Sequence[str], *, actor: str, reason: str) -> tuple[str, ...]:
        """Put those edits back into the queue that are dead, with all their attempts, and ring; return their ids.

        Raises:
            UnknownRecord: if an id names no edit of this lineage; nothing was written.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, lineage)
            statuses = _statuses(connection, on, list(dict.fromkeys(edit_ids)))
            dead = [edit_id for edit_id, status in statuses.items() if status is EditStatus.dead]
            why = f"asked to be tried again{f': {reason}' if reason else ''}"
            moves = [Move(edit_id=edit_id, to=EditStatus.received, reason=why, attempts=0) for edit_id in sorted(dead)]
            events = move(connection, moves, on=on, actor=actor)
            if events:
                key = f"doorbell:{on.name}:{events[-1].seq}"
                owe(connection, kind="doorbell", dedup_key=key, payload=on.doorbell)
            return tuple(one.edit_id for one in moves)

    def note(self, lineage: str, *, action: str, subject: str, actor: str, payload: Mapping[str, Any]) -> None:
        """Append one audit line that moves no status (`champion:restored`).

        Raises:
            UnknownLineage: if there is no such lineage.
            InvalidInput: if the action is not one of `AuditAction`.
        """
        if action not in frozenset(AuditAction):
            raise InvalidInput(f"expected an audit action, got {action!r}", lineage=lineage)
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, lineage)
            append(
                connection,
                chain=on.name,
                actor=actor,
                action=AuditAction(action),
                subject=subject,
                payload=payload,
            )


def _locked_snapshot(connection: Connection, on: LockedLineage, snapshot_id: str) -> Row[Any]:
    query = select(snapshots).where(snapshots.c.lineage_id == on.lineage_id, snapshots.c.snapshot_id == snapshot_id)
    row = connection.execute(query.with_for_update()).one_or_none() if is_uuid(snapshot_id) else None
    if row is None:
        message = f"expected a snapshot of {on.name!r}, got {snapshot_id!r}"
        raise UnknownRecord(message, lineage=on.name, snapshot_id=snapshot_id)
    return row


def _same_decision(connection: Connection, on: LockedLineage, row: Row[Any], approval: Approval) -> str | None:
    """Return the approval row of the same decision, if the snapshot still stands as that decision left it."""
    stands = {
        Decision.approved: row.status == SnapshotStatus.approved,
        Decision.rejected: row.status == SnapshotStatus.rejected,
        Decision.rolled_back: on.champion_id == row.snapshot_id,
    }
    if not stands[approval.decision] or approval.snapshot_digest != row.digest:
        return None
    query = select(approvals.c.approval_id).where(
        approvals.c.snapshot_id == row.snapshot_id,
        approvals.c.decision == approval.decision.value,
        approvals.c.refusal.is_(None),
    )
    return connection.scalar(query.order_by(approvals.c.decided_at.desc()).limit(1))


def _endorse(connection: Connection, on: LockedLineage, approval: Approval, standing: Standing) -> Outcome:
    """Take down one of several approvals, once a person, and audit it; the snapshot stays a candidate."""
    if len(approvers(approval, standing)) == len(standing.endorsers):
        return _accepted(approval, standing, None)
    approval_id = _record(connection, on, approval, refused=None)
    found = _accepted(approval, standing, approval_id)
    append(
        connection,
        chain=on.name,
        actor=approval.actor,
        action=AuditAction.snapshot_endorsed,
        subject=approval.snapshot_id,
        payload=about(approval, approval_id)
        | {"digest": standing.digest, "num_approvals": found.num_approvals, "num_needed": found.num_needed},
    )
    return found


def _accepted(approval: Approval, standing: Standing, approval_id: str | None) -> Outcome:
    is_approval = approval.decision in (Decision.approved, Decision.endorsed)
    return Outcome(
        is_accepted=True,
        reason="",
        approval_id=approval_id,
        num_approvals=len(approvers(approval, standing)) if is_approval else 1,
        num_needed=standing.policy.num_needed if is_approval else 1,
    )


def _record(connection: Connection, on: LockedLineage, approval: Approval, *, refused: str | None) -> str:
    seen = approval.champion_seen
    row = {
        "lineage_id": on.lineage_id,
        "snapshot_id": approval.snapshot_id,
        "snapshot_digest": approval.snapshot_digest,
        "champion_seen": seen if seen and _is_snapshot(connection, seen) else None,
        "decision": approval.decision.value,
        "actor": approval.actor,
        "is_claimed": approval.is_claimed,
        "reason": approval.reason,
        "channel": approval.channel.value,
        "refusal": refused,
    }
    approval_id: str = connection.execute(insert(approvals).values(row).returning(approvals.c.approval_id)).scalar_one()
    return approval_id


def _is_snapshot(connection: Connection, snapshot_id: str) -> bool:
    query = select(func.count()).where(snapshots.c.snapshot_id == snapshot_id)
    return is_uuid(snapshot_id) and bool(connection.scalar(query))


def _audit_refusal(
    connection: Connection, on: LockedLineage, approval: Approval, *, approval_id: str, reason: str
) -> None:
    append(
        connection,
        chain=on.name,
        actor=approval.actor,
        action=AuditAction.approval_refused,
        subject=approval.snapshot_id,
        payload={
            "approval": approval_id,
            "decision": approval.decision.value,
            "digest_seen": approval.snapshot_digest,
            "champion_seen": approval.champion_seen,
            "is_claimed": approval.is_claimed,
            "channel": approval.channel.value,
            "refusal": reason,
        },
    )


def _statuses(connection: Connection, on: LockedLineage, edit_ids: Sequence[str]) -> dict[str, EditStatus]:
    known = [edit_id for edit_id in edit_ids if is_uuid(edit_id)]
    query = select(edit_requests.c.edit_id, edit_requests.c.status).where(
        edit_requests.c.lineage_id == on.lineage_id, edit_requests.c.edit_id.in_(known)
    )
    found = {row.edit_id: EditStatus(row.status) for row in connection.execute(query)}
    missing = [edit_id for edit_id in edit_ids if edit_id not in found]
    if missing:
        message = f"expected an edit of {on.name!r}, got {missing[0]!r}"
        raise UnknownRecord(message, lineage=on.name, edit_id=missing[0])
    return found


def _refuse_gone(statuses: Mapping[str, EditStatus], active: set[str]) -> None:
    for edit_id, status in statuses.items():
        if status is not EditStatus.received and edit_id not in active:
            more = "; it is in a batch now, ask again when that is done" if status is EditStatus.claimed else ""
            message = f"expected an edit that is queued or active, got {edit_id}, which is {status}{more}"
            raise InvalidInput(message, edit_id=edit_id)


def _owe_removal(
    connection: Connection, on: LockedLineage, edit_ids: Sequence[str], *, actor: str, reason: str
) -> tuple[str, ...]:
    owed: dict[str, str] = {}
    for row in owed_removals(connection, on):
        owed.update({edit_id: row.removal_id for edit_id in row.edit_ids})
    ids = list(dict.fromkeys(owed[edit_id] for edit_id in edit_ids if edit_id in owed))
    fresh = [edit_id for edit_id in edit_ids if edit_id not in owed]
    if fresh:
        ids.append(request_removal(connection, on, fresh, rejected_snapshot_id=None, actor=actor, reason=reason))
    return tuple(ids)
