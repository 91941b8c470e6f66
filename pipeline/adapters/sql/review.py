"""Decisions of people in PostgreSQL, each one transaction: approve, reject, roll back, revert, retry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, literal, select, text

from pipeline.adapters.sql.active_sets import active_among
from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import LockedLineage, lineage_id_of, lock_lineage
from pipeline.adapters.sql.database.rows import is_uuid
from pipeline.adapters.sql.database.tables import approvals, edit_requests, gate_reports, snapshots, status_is
from pipeline.adapters.sql.decisions import carry_out, owed_removals, request_removal
from pipeline.adapters.sql.outbox import owe
from pipeline.adapters.sql.statuses import Move, move, restore_queued
from pipeline.domain.approvals import Approval, ApprovalRule, Decision, Outcome, Standing, refusal
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput, UnknownRecord
from pipeline.domain.gates import GatePolicy, Verdict
from pipeline.domain.judging import judge
from pipeline.domain.lifecycle import EditStatus, SnapshotStatus
from pipeline.domain.measurements import Measurements

ASKED = text(
    """
    WITH live AS (SELECT coalesce(max(seq), 0) AS seq FROM snapshots WHERE snapshot_id = CAST(:champion_id AS uuid))
    SELECT min(e.request_id) AS request, e.submitted_by AS asked_by
    FROM live, edit_rows r JOIN edit_requests e USING (edit_id)
    WHERE r.lineage_id = :lineage_id AND r.since_seq > live.seq AND r.since_seq <= :seq
      AND int4range(r.since_seq, r.until_seq) @> CAST(:seq AS integer)
    GROUP BY e.submitted_by
    UNION ALL
    SELECT 'the removal ' || min(m.removal_id::text), m.actor
    FROM live, removals m JOIN snapshots s USING (snapshot_id)
    WHERE m.lineage_id = :lineage_id AND s.seq > live.seq AND s.seq <= :seq
    GROUP BY m.actor
    """
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
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, approval.lineage)
            row = _locked_snapshot(connection, on, approval.snapshot_id)
            before = _same_decision(connection, on, row, approval)
            if before is not None:
                return Outcome(is_accepted=True, reason="", approval_id=before)
            reason = refusal(approval, _standing(connection, on, row))
            approval_id = _record(connection, on, approval, refused=reason)
            if reason is not None:
                _audit_refusal(connection, on, approval, approval_id=approval_id, reason=reason)
                return Outcome(is_accepted=False, reason=reason, approval_id=approval_id)
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


def _standing(connection: Connection, on: LockedLineage, row: Row[Any]) -> Standing:
    report = connection.execute(
        select(gate_reports.c.verdict, gate_reports.c.snapshot_digest, gate_reports.c.policy_digest).where(
            gate_reports.c.gate_report_id == row.gate_report_id
        )
    ).one()
    champion_seq = select(snapshots.c.seq).where(snapshots.c.snapshot_id == on.champion_id)
    above = select(literal(1)).where(
        snapshots.c.lineage_id == on.lineage_id,
        snapshots.c.seq > row.seq,
        snapshots.c.status == SnapshotStatus.approved,
    )
    return Standing(
        digest=row.digest,
        status=SnapshotStatus(row.status),
        seq=row.seq,
        gate_passed=report.verdict == Verdict.passed and report.snapshot_digest == row.digest,
        policy_digest=report.policy_digest,
        lineage_policy_digest=on.policy_digest,
        champion_id=on.champion_id,
        champion_seq=connection.scalar(champion_seq) or 0,
        is_under_approved=bool(connection.scalar(select(above.exists()))),
        shortfall=_shortfall(connection, on, row) if report.policy_digest != on.policy_digest else None,
        rule=ApprovalRule(on.approval_rule),
        asked=_asked(connection, on, row) if on.approval_rule == ApprovalRule.four_eyes else {},
    )


def _shortfall(connection: Connection, on: LockedLineage, row: Row[Any]) -> str | None:
    """Judge again, by the policy of now, what was measured of a snapshot; return what does not pass."""
    is_its = gate_reports.c.gate_report_id == row.gate_report_id
    measured = connection.execute(select(gate_reports.c.report["measurements"]).where(is_its)).scalar_one()
    report = judge(GatePolicy.from_stored(on.policy), Measurements.from_stored(measured))
    return None if report.passed else report.summary


def _asked(connection: Connection, on: LockedLineage, row: Row[Any]) -> dict[str, str | None]:
    """Return one request of everybody who asked for something that the snapshot holds and the champion does not."""
    values = {"lineage_id": on.lineage_id, "champion_id": on.champion_id, "seq": row.seq}
    return {found.request: found.asked_by for found in connection.execute(ASKED, values)}


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
