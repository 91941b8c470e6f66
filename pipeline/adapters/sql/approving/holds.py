"""The holds that a decision puts on a lineage, and how they go: after a roll back, and after an undo that failed.

Runs inside the transaction of its caller, on a locked lineage.
"""

from __future__ import annotations

from sqlalchemy import Connection, update

from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.locks import LockedLineage
from pipeline.adapters.sql.database.tables import lineages
from pipeline.adapters.sql.outbox import owe
from pipeline.domain.audit import AuditAction

ROLLED_BACK = "rolled back to "
"""How the reason of the hold that a roll back puts on a lineage begins."""
UNDO_FAILED = "the ledger before rejected snapshot "
"""How the reason of the hold begins under which a ledger stays that was rejected, as the one before did not pass."""


def hold_after_roll_back(
    connection: Connection, on: LockedLineage, *, seq: int, reason: str, actor: str, anew: int | None = None
) -> None:
    """Hold the lineage, unless something else holds it already: that reason stays.

    Args:
        connection: in the transaction of the roll back.
        on: the lineage.
        seq: the snapshot that is live again.
        reason: why, in the person's words.
        actor: who rolled back.
        anew: the first snapshot that was rolled back and has a new ledger; None if there is none.
    """
    if on.hold is not None and not on.hold.startswith(ROLLED_BACK):
        return
    hold = f"{ROLLED_BACK}{seq}: {reason or 'no reason given'}"
    if anew is not None:
        hold += f"; `lineage rekey {on.name} --undo {anew}` brings the ledger before snapshot {anew} back"
    _hold(connection, on, hold, actor=actor)


def hold_after_failed_undo(connection: Connection, on: LockedLineage, *, seq: int, reason: str, actor: str) -> None:
    """Hold a lineage whose ledger was rejected while the one before cannot come back: a person has to choose.

    Args:
        connection: in the transaction that fails the undo.
        on: the lineage.
        seq: the rejected snapshot.
        reason: why the undo failed.
        actor: the worker.
    """
    if on.hold is not None and not on.hold.startswith(ROLLED_BACK):
        return
    ways = f"`lineage rekey {on.name}` solves it anew, with `--undo {seq}` that is tried again, `lineage resume`"
    hold = f"{UNDO_FAILED}{seq} did not come back: {reason}; {ways} goes on with the rejected one"
    _hold(connection, on, hold + (f"; {on.hold}" if on.hold else ""), actor=actor)


def _hold(connection: Connection, on: LockedLineage, hold: str, *, actor: str) -> None:
    connection.execute(update(lineages).where(lineages.c.lineage_id == on.lineage_id).values(hold=hold))
    append(
        connection,
        chain=on.name,
        actor=actor,
        action=AuditAction.lineage_held,
        subject=on.lineage_id,
        payload={"reason": hold},
    )


def lift(connection: Connection, on: LockedLineage, kind: str, *, because: str, actor: str) -> None:
    """Lift a hold of a kind, `ROLLED_BACK` or `UNDO_FAILED`, and ring; any other stays."""
    if on.hold is None or not on.hold.startswith(kind):
        return
    connection.execute(update(lineages).where(lineages.c.lineage_id == on.lineage_id).values(hold=None))
    event = append(
        connection,
        chain=on.name,
        actor=actor,
        action=AuditAction.lineage_resumed,
        subject=on.lineage_id,
        payload={"held": on.hold, "because": because},
    )
    owe(connection, kind="doorbell", dedup_key=f"doorbell:{on.name}:{event.seq}", payload=on.doorbell)
