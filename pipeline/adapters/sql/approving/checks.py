"""What a decision about a snapshot is checked against, read on locked rows inside the transaction of its caller."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, literal, select, text

from pipeline.adapters.sql.approving.going_live import goes_live_with, is_brought_and_held
from pipeline.adapters.sql.approving.resolving import resolving_of
from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.tables import approvals, edit_rows, gate_reports, removals, snapshots
from pipeline.domain.gates import GatePolicy, Verdict
from pipeline.domain.judging import judge
from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.measurements import Measurements
from pipeline.domain.review.approvals import Decision, Standing
from pipeline.domain.review.policies import Risk, risk_of

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

COUNTED = 10_000
"""What would go live is counted up to here."""


def standing_of(connection: Connection, on: LockedLineage, row: Row[Any]) -> Standing:
    """Return everything that a decision about the snapshot of `row` is checked against."""
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
        policy=on.approval,
        endorsers=_endorsers(connection, on, row) if on.approval.num_needed > 1 else (),
        risk=_risk(connection, on, row) if on.approval.automatic_below else None,
        asked=_asked(connection, on, row) if on.approval.not_own else {},
        takes_out=_taken_out(connection, row),
    )


def _taken_out(connection: Connection, row: Row[Any]) -> int | None:
    """Return the place of the rejected snapshot whose ledger is taken out here, if that is what the snapshot is for."""
    anew = resolving_of(connection, row)
    if anew is None or anew.rejected_snapshot_id is None:
        return None
    rejected = select(snapshots.c.seq).where(snapshots.c.snapshot_id == anew.rejected_snapshot_id)
    seq: int = connection.execute(rejected).scalar_one()
    return seq


def _shortfall(connection: Connection, on: LockedLineage, row: Row[Any]) -> str | None:
    """Judge again, by the policy of now, what was measured of a snapshot; return what does not pass."""
    anew = resolving_of(connection, row)
    is_its = gate_reports.c.gate_report_id == row.gate_report_id
    measured = connection.execute(select(gate_reports.c.report["measurements"]).where(is_its)).scalar_one()
    is_undo = anew is not None and bool(anew.resolving["undoes"])
    report = judge(GatePolicy.from_stored(on.policy), Measurements.from_stored(measured), is_undo=is_undo)
    return None if report.passed else report.summary


def _endorsers(connection: Connection, on: LockedLineage, row: Row[Any]) -> tuple[str, ...]:
    """Return who approved a snapshot, digest and champion being what they are now, oldest first."""
    query = select(approvals.c.actor).where(
        approvals.c.snapshot_id == row.snapshot_id,
        approvals.c.snapshot_digest == row.digest,
        approvals.c.champion_seen.is_not_distinct_from(on.champion_id),
        approvals.c.decision == Decision.endorsed.value,
        approvals.c.refusal.is_(None),
    )
    return tuple(connection.execute(query.order_by(approvals.c.decided_at)).scalars())


def _risk(connection: Connection, on: LockedLineage, row: Row[Any]) -> Risk:
    """Return the risk of all that goes live with a snapshot; no report is read where there are too many edits."""
    champion_seq = select(func.coalesce(func.max(snapshots.c.seq), 0)).where(snapshots.c.snapshot_id == on.champion_id)
    is_new = (snapshots.c.lineage_id == on.lineage_id) & (snapshots.c.seq <= row.seq)
    is_new &= snapshots.c.seq > champion_seq.scalar_subquery()
    brought = select(edit_rows.c.place).join(snapshots, is_brought_and_held(row.seq)).where(is_new).limit(COUNTED)
    length = func.jsonb_array_length(removals.c.edit_ids).label("length")
    taken = (
        select(length)
        .join(snapshots, snapshots.c.snapshot_id == removals.c.snapshot_id)
        .where(is_new)
        .limit(COUNTED)
        .subquery()
    )
    num_edits = connection.scalar(select(func.count()).select_from(brought.subquery())) or 0
    num_edits += connection.scalar(select(func.coalesce(func.sum(taken.c.length), 0))) or 0
    anew = select(literal(1)).join(snapshots, snapshots.c.snapshot_id == removals.c.snapshot_id)
    is_solved_anew = bool(connection.scalar(select(anew.where(is_new, removals.c.resolving.is_not(None)).exists())))
    limit = on.approval.automatic_below
    if limit is None or num_edits > limit.max_edits or is_solved_anew:
        return Risk(num_edits=num_edits, worst_locality=None, quality_loss=None, is_solved_anew=is_solved_anew)
    reports = select(gate_reports.c.report).join(snapshots, snapshots.c.gate_report_id == gate_reports.c.gate_report_id)
    is_part = is_new & goes_live_with(row.seq)
    found = connection.execute(reports.where(is_part).order_by(snapshots.c.seq)).scalars().all()
    champion = connection.scalar(reports.where(snapshots.c.snapshot_id == on.champion_id))
    return risk_of(found, num_edits=num_edits, champion=champion)


def _asked(connection: Connection, on: LockedLineage, row: Row[Any]) -> dict[str | None, str]:
    """Return one request of everybody who asked for something that the snapshot holds and the champion does not.

    They are told apart by who asked: anybody may choose a request's id.
    """
    values = {"lineage_id": on.lineage_id, "champion_id": on.champion_id, "seq": row.seq}
    return {found.asked_by: found.request for found in connection.execute(ASKED, values)}
