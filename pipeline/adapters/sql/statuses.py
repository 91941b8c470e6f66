"""The one place where the status of an edit or a snapshot changes, with what every change leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Interval, Row, bindparam, func, literal, select, update

from pipeline.adapters.sql.audit import AuditLine, append_all
from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.tables import batch_edits, edit_batches, edit_requests, snapshots
from pipeline.adapters.sql.outbox import Debt, owe_all
from pipeline.domain.audit import AuditEvent
from pipeline.domain.batches import Setback
from pipeline.domain.errors import UnknownRecord
from pipeline.domain.language.spelling import exact
from pipeline.domain.lifecycle import EditStatus, SnapshotStatus, edit_action, snapshot_action

FIRST_WAIT = timedelta(seconds=1)
LONGEST_WAIT = timedelta(minutes=5)
RELEASED, UNDECIDED, SUSPECTED = "released", "undecided", "suspected"
"""What a batch notes of edits that it gave back. Those that it tried together without a verdict, or alone, are
undecided, and those that others passed without are suspected: they say with how many they may be tried again."""
OUTCOMES = {Setback.together: UNDECIDED, Setback.alone: UNDECIDED, Setback.suspected: SUSPECTED}
ANNOUNCED = frozenset(
    {EditStatus.snapshotted, EditStatus.rejected, EditStatus.superseded, EditStatus.reverted, EditStatus.dead}
)
"""Statuses that the producer hears of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One edit and the status it is to have."""

    edit_id: str
    """The edit whose status moves."""
    to: EditStatus
    """Where it goes."""
    reason: str | None = None
    """Why, for the producer and the auditor."""
    superseded_by: str | None = None
    """The edit that holds instead of a superseded one."""
    gate_report_id: str | None = None
    """The report that rejects it."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """More for the audit line: the batch, the snapshot."""
    attempts: int | None = None
    """Attempts that it has had from now on; None for as many as before."""
    wait: timedelta = timedelta()
    """How long it has to wait at least before it is claimed again."""
    outcome: str | None = None
    """What its batch notes of it; None for the status."""


def move(connection: Connection, moves: Sequence[Move], *, on: LockedLineage, actor: str) -> Sequence[AuditEvent]:
    """Change statuses: one audit line each, a result owed to the producer, the outcome noted in the batch.

    Returns:
        The audit lines, in the order of the moves.

    Raises:
        UnknownRecord: if an id names no edit of the lineage.
        IllegalTransition: if the lifecycle does not hold a move.
    """
    if not moves:
        return ()
    rows = _locked(connection, moves, on)
    lines = [_line(one, rows[one.edit_id], on=on, actor=actor) for one in moves]
    connection.execute(_change(), [_values(one, rows[one.edit_id]) for one in moves])
    _note_outcomes(connection, [one for one in moves if _leaves_batch(rows[one.edit_id], one)], on)
    events = append_all(connection, lines)
    owe_all(connection, _results(moves, rows, events, lineage=on.name))
    return events


def put_back(
    connection: Connection,
    claimed: Sequence[Row[Any]],
    *,
    on: LockedLineage,
    actor: str,
    reason: str,
    setback: Setback,
    max_attempts: int,
) -> None:
    """Put claimed edits back into the queue; what was tried alone is `dead` if that makes `max_attempts`."""
    is_attempt = setback is Setback.alone
    dead = {row.edit_id for row in claimed if is_attempt and row.attempts + 1 >= max_attempts}
    batches = _batches_so_far(connection, claimed) if setback is Setback.hindered else {}
    moves = [
        Move(
            edit_id=row.edit_id,
            to=EditStatus.dead if row.edit_id in dead else EditStatus.received,
            reason=reason,
            attempts=row.attempts + is_attempt,
            wait=_wait(setback, row, batches),
            outcome=None if row.edit_id in dead else OUTCOMES.get(setback, RELEASED),
        )
        for row in claimed
    ]
    move(connection, moves, on=on, actor=actor)
    restore_queued(connection, sorted(dead), on=on, actor=actor)


def _wait(setback: Setback, row: Row[Any], batches: Mapping[str, int]) -> timedelta:
    match setback:
        case Setback.untried | Setback.suspected:
            return timedelta()
        case Setback.together:
            return FIRST_WAIT  # those who were not with it come first
        case Setback.hindered:
            return _doubled(batches[row.edit_id] - 1)
        case Setback.alone:
            return _doubled(row.attempts)


def _doubled(times: int) -> timedelta:
    return min(FIRST_WAIT * (1 << min(times, 20)), LONGEST_WAIT)


def _batches_so_far(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, int]:
    """Return how many batches each edit has been in."""
    ids = [row.edit_id for row in rows]
    query = select(batch_edits.c.edit_id, func.count()).where(batch_edits.c.edit_id.in_(ids))
    return {row[0]: row[1] for row in connection.execute(query.group_by(batch_edits.c.edit_id))}


def restore_queued(connection: Connection, edit_ids: Sequence[str], *, on: LockedLineage, actor: str) -> None:
    """Put back into the queue what had made way, while waiting, for edits that never got into a snapshot.

    A correction that its gate rejects supersedes nothing. Duplicates stay: they ask for what was just refused.
    """
    made_way = edit_requests.alias()
    query = (
        select(made_way.c.edit_id, made_way.c.target_new, edit_requests.c.target_new.label("winner_target"))
        .join(edit_requests, edit_requests.c.edit_id == made_way.c.superseded_by)
        .where(edit_requests.c.edit_id.in_(edit_ids), made_way.c.status == EditStatus.superseded)
        .order_by(made_way.c.edit_id)
    )
    rows = connection.execute(query).all()
    reason = "the correction it had made way for did not get in"
    back = [row.edit_id for row in rows if exact(row.target_new) != exact(row.winner_target)]
    moves = [Move(edit_id=edit_id, to=EditStatus.received, reason=reason) for edit_id in back]
    move(connection, moves, on=on, actor=actor)


def _locked(connection: Connection, moves: Sequence[Move], on: LockedLineage) -> dict[str, Row[Any]]:
    wanted = [one.edit_id for one in moves]
    query = select(edit_requests).where(
        edit_requests.c.lineage_id == on.lineage_id, edit_requests.c.edit_id.in_(wanted)
    )
    found = connection.execute(query.order_by(edit_requests.c.edit_id).with_for_update())
    rows: dict[str, Row[Any]] = {row.edit_id: row for row in found}
    missing = [edit_id for edit_id in wanted if edit_id not in rows]
    if missing:
        message = f"expected an edit of the lineage {on.name!r}, got {missing[0]}"
        raise UnknownRecord(message, lineage=on.name, edit_id=missing[0])
    return rows


def _line(one: Move, row: Row[Any], *, on: LockedLineage, actor: str) -> AuditLine:
    before = EditStatus(row.status)
    details = {
        "request_id": row.request_id,
        "from": before.value,
        "to": one.to.value,
        "reason": one.reason,
        "superseded_by": one.superseded_by,
        "gate_report": one.gate_report_id,
        "attempts": _attempts(one, row),
    }
    payload = {key: value for key, value in {**details, **one.about}.items() if value is not None}
    action = edit_action(before, one.to)
    return AuditLine(chain=on.name, actor=actor, action=action, subject=one.edit_id, payload=payload)


def _change() -> Any:
    wait = bindparam("wait", type_=Interval)
    later = func.greatest(edit_requests.c.next_attempt_at, func.clock_timestamp() + wait)
    return (
        update(edit_requests)
        .where(edit_requests.c.edit_id == bindparam("which"))
        .values(
            status=bindparam("to"),
            reason=bindparam("why"),
            superseded_by=bindparam("winner"),
            attempts=bindparam("attempts"),
            next_attempt_at=later,
        )
    )


def _values(one: Move, row: Row[Any]) -> dict[str, Any]:
    return {
        "which": one.edit_id,
        "to": one.to.value,
        "why": one.reason,
        "winner": one.superseded_by,
        "attempts": _attempts(one, row),
        "wait": one.wait,
    }


def _attempts(one: Move, row: Row[Any]) -> int:
    return int(row.attempts if one.attempts is None else one.attempts)


def _leaves_batch(row: Row[Any], one: Move) -> bool:
    return row.status == EditStatus.claimed and one.to is not EditStatus.claimed


def _note_outcomes(connection: Connection, moves: Sequence[Move], on: LockedLineage) -> None:
    """Write what became of the edits of open batches; a batch is finished once that is known of all of them."""
    if not moves:
        return
    is_open = (edit_batches.c.lineage_id == on.lineage_id) & edit_batches.c.finished_at.is_(None)
    outcome = (
        update(batch_edits)
        .where(batch_edits.c.batch_id == edit_batches.c.batch_id, is_open, batch_edits.c.outcome.is_(None))
        .where(batch_edits.c.edit_id == bindparam("which"))
        .values(outcome=bindparam("became"), gate_report_id=bindparam("report"))
    )
    values = [
        {"which": one.edit_id, "became": one.outcome or one.to.value, "report": one.gate_report_id} for one in moves
    ]
    connection.execute(outcome, values)
    undecided = select(literal(1)).where(
        batch_edits.c.batch_id == edit_batches.c.batch_id, batch_edits.c.outcome.is_(None)
    )
    connection.execute(
        update(edit_batches).where(is_open, ~undecided.exists()).values(finished_at=func.clock_timestamp())
    )


def _results(
    moves: Sequence[Move], rows: Mapping[str, Row[Any]], events: Sequence[AuditEvent], *, lineage: str
) -> list[Debt]:
    return [
        Debt(
            kind="result",
            dedup_key=f"result:{one.edit_id}:{one.to.value}:{event.seq}",
            stream=f"result:{one.edit_id}",
            payload={
                "edit_id": one.edit_id,
                "request_id": rows[one.edit_id].request_id,
                "lineage": lineage,
                "status": one.to.value,
                "reason": one.reason,
                "at": event.at.isoformat(),
            },
        )
        for one, event in zip(moves, events, strict=True)
        if one.to in ANNOUNCED
    ]


def move_snapshots(
    connection: Connection,
    snapshot_ids: Sequence[str],
    to: SnapshotStatus,
    *,
    on: LockedLineage,
    actor: str,
    about: Mapping[str, Any],
) -> None:
    """Change statuses, oldest snapshot first, with one audit line each.

    Raises:
        IllegalTransition: if the lifecycle does not hold a move.
    """
    if not snapshot_ids:
        return
    query = select(snapshots).where(snapshots.c.lineage_id == on.lineage_id, snapshots.c.snapshot_id.in_(snapshot_ids))
    rows = connection.execute(query.order_by(snapshots.c.seq).with_for_update()).all()
    lines = [
        AuditLine(
            chain=on.name,
            actor=actor,
            action=snapshot_action(SnapshotStatus(row.status), to),
            subject=row.snapshot_id,
            payload={"seq": row.seq, "digest": row.digest, "from": row.status, "to": to.value, **about},
        )
        for row in rows
    ]
    is_meant = snapshots.c.snapshot_id.in_([row.snapshot_id for row in rows])
    connection.execute(update(snapshots).where(is_meant).values(status=to.value))
    append_all(connection, lines)
