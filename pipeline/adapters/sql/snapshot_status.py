"""The one place where a snapshot's status changes after it was made. Knows not who decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from pipeline.adapters.sql.audit import AuditLine, append_all
from pipeline.adapters.sql.locks import LockedLineage
from pipeline.adapters.sql.tables import snapshots
from pipeline.domain.lifecycle import SnapshotStatus, snapshot_action


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
