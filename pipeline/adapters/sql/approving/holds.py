"""The hold that a roll back puts on a lineage, and how it goes.

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


def hold_after_roll_back(connection: Connection, on: LockedLineage, *, seq: int, reason: str, actor: str) -> None:
    """Hold the lineage, unless something else holds it already: that reason stays."""
    if on.hold is not None and not on.hold.startswith(ROLLED_BACK):
        return
    hold = f"{ROLLED_BACK}{seq}: {reason or 'no reason given'}"
    connection.execute(update(lineages).where(lineages.c.lineage_id == on.lineage_id).values(hold=hold))
    append(
        connection,
        chain=on.name,
        actor=actor,
        action=AuditAction.lineage_held,
        subject=on.lineage_id,
        payload={"reason": hold},
    )


def lift_after_roll_back(connection: Connection, on: LockedLineage, *, because: str, actor: str) -> None:
    """Lift the hold of a roll back, and ring; any other hold stays."""
    if on.hold is None or not on.hold.startswith(ROLLED_BACK):
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
