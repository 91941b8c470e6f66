"""What auditors are shown: views and entries that are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Connection, Engine, RowMapping, func, select, text

from pipeline.adapters.sql.active_sets import first_seq
from pipeline.adapters.sql.approving.resolving import ledger_standing
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import lineage_id_of
from pipeline.adapters.sql.database.rows import is_uuid
from pipeline.adapters.sql.database.tables import (
    approvals,
    audit_events,
    ingest_offsets,
    snapshots,
)
from pipeline.domain.errors import UnknownRecord
from pipeline.domain.ledger.upkeep import LedgerStanding
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.review.approvals import is_claimed_actor, shown_actor

# The newest are found first, so that the view is worked out for no more rows than are shown. Ids grow with time.
_BY_STATUS = text(
    """
    SELECT * FROM edit_history WHERE edit_id IN (
        SELECT edit_id FROM edit_requests JOIN lineages USING (lineage_id)
        WHERE name = :lineage AND (CAST(:status AS text) IS NULL OR status = :status)
        ORDER BY edit_id DESC LIMIT :limit
    ) ORDER BY received_at, edit_id
    """
)
_BY_STATE = text(
    """
    SELECT * FROM (
        SELECT * FROM edit_history WHERE lineage = :lineage AND state = :status ORDER BY edit_id DESC LIMIT :limit
    ) newest ORDER BY received_at, edit_id
    """
)
_ONE = text(
    """
    SELECT * FROM edit_history WHERE edit_id = (
        SELECT edit_id FROM edit_requests JOIN lineages USING (lineage_id)
        WHERE name = :lineage AND (edit_id = CAST(:edit_id AS uuid) OR request_id = :ref)
        ORDER BY edit_id = CAST(:edit_id AS uuid) DESC NULLS LAST LIMIT 1
    )
    """
)
_STATES = text(
    """
    SELECT request_id, state, prompt, target_new, snapshot_seq, registry_version, reason, gate_reason
    FROM edit_history WHERE edit_id IN (
        SELECT edit_id FROM edit_requests JOIN lineages USING (lineage_id)
        WHERE name = :lineage AND request_id = ANY(:ids)
    )
    """
)
_FOLDED = text(
    """
    SELECT folded_from, from_seq, folded_by, approved_by, approved_at FROM folded_facts
    WHERE lineage = :lineage AND (edit_id = CAST(:edit_id AS uuid) OR request_id = :ref)
    """
)
_ABOUT = ("edit_id", "snapshot_id", "approved_snapshot_id", "removal_id")
"""Columns of `edit_history` that name what an edit's audit lines are about."""


class SqlHistoryStore:
    """Reads of the views that auditors and the command line see."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def edits(self, lineage: str, *, status: str | None = None, limit: int = 1000) -> tuple[Mapping[str, Any], ...]:
        """Return the newest rows of `edit_history`, of these the oldest first.

        `status` may also be one of its states, such as `live`.

        Raises:
            UnknownLineage: if there is none.
        """
        is_state = status is not None and status not in frozenset(EditStatus)
        wanted = {"lineage": lineage, "status": status, "limit": limit}
        with transaction(self._engine) as connection:
            lineage_id_of(connection, lineage)
            rows = connection.execute(_BY_STATE if is_state else _BY_STATUS, wanted).mappings().all()
        return tuple(_plain(row) for row in rows)

    def edit(self, lineage: str, ref: str) -> Mapping[str, Any]:
        """Return one row of `edit_history`, by edit id or request id, with its audit lines under `events`.

        The lines are the edit's own and those of the snapshot that brought it in, of its approval and its removal.

        Raises:
            UnknownRecord: if there is none.
        """
        wanted = {"lineage": lineage, "edit_id": ref if is_uuid(ref) else None, "ref": ref}
        with transaction(self._engine) as connection:
            row = connection.execute(_ONE, wanted).mappings().one_or_none()
            if row is None:
                message = f"expected the id of an edit or request of the lineage {lineage!r}, got {ref!r:.120}"
                raise UnknownRecord(message + _where_folded(connection, lineage, wanted), lineage=lineage, edit=ref)
            found = _plain(row)
            return found | {"events": _events(connection, lineage, {found[name] for name in _ABOUT if found[name]})}

    def states(self, lineage: str, request_ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Return where requests stand, by id; those that intake has not recorded are left out."""
        with transaction(self._engine) as connection:
            rows = connection.execute(_STATES, {"lineage": lineage, "ids": list(request_ids)}).mappings().all()
        return {row["request_id"]: _plain(row) for row in rows}

    def snapshot_seq(self, edit_id: str) -> int | None:
        """Return the first snapshot that held an edit; None if none did, or there is no such edit."""
        with transaction(self._engine) as connection:
            return first_seq(connection, edit_id) if is_uuid(edit_id) else None

    def approvals(self, lineage: str) -> tuple[Mapping[str, Any], ...]:
        """Return every decision, refused ones too, oldest first.

        Raises:
            UnknownLineage: if there is none.
        """
        query = select(approvals, snapshots.c.seq.label("snapshot_seq")).join(
            snapshots, snapshots.c.snapshot_id == approvals.c.snapshot_id
        )
        with transaction(self._engine) as connection:
            mine = query.where(approvals.c.lineage_id == lineage_id_of(connection, lineage))
            rows = connection.execute(mine.order_by(approvals.c.decided_at, approvals.c.approval_id)).mappings().all()
        return tuple(_plain(row) for row in rows)

    def ledger(self, lineage: str) -> LedgerStanding:
        """Return when the keys of a lineage's ledger were read again, and what is owed to its head.

        Raises:
            UnknownLineage: if there is none.
        """
        with transaction(self._engine) as connection:
            return ledger_standing(connection, lineage_id_of(connection, lineage))

    def intake_counts(self) -> Mapping[str, int]:
        """`received`, `duplicates`, `refused` over all partitions."""
        columns = ingest_offsets.c
        query = select(
            func.coalesce(func.sum(columns.num_received), 0).label("received"),
            func.coalesce(func.sum(columns.num_duplicates), 0).label("duplicates"),
            func.coalesce(func.sum(columns.num_refused), 0).label("refused"),
        )
        with transaction(self._engine) as connection:
            row = connection.execute(query).mappings().one()
        return {name: int(value) for name, value in row.items()}

    def now(self) -> datetime:
        """Return database time; also the cheapest health check."""
        with transaction(self._engine) as connection:
            return cast(datetime, connection.execute(select(func.clock_timestamp())).scalar_one())


def _where_folded(connection: Connection, lineage: str, wanted: Mapping[str, Any]) -> str:
    """Say what to do about a fact that is a part of the lineage's base; nothing where it is none."""
    row = connection.execute(_FOLDED, wanted).one_or_none()
    if row is None:
        return ""
    origin = row.folded_from
    approved = ""
    if row.approved_by:
        approved = f", approved by {shown_actor(row.approved_by)} at {row.approved_at.astimezone(UTC):%Y-%m-%d %H:%M}Z"
    return (
        f", a fact of {origin!r} that {shown_actor(row.folded_by)} folded into the base from snapshot {row.from_seq}"
        f"{approved}: correct it like any other fact, or fold {origin} once more without it: "
        f"corrigenda lineage fold {origin} NEW --without {wanted['ref']}"
    )


def _events(connection: Connection, lineage: str, subjects: set[str]) -> tuple[Mapping[str, Any], ...]:
    columns = audit_events.c
    query = select(audit_events).where(columns.chain == lineage, columns.subject.in_(sorted(subjects)))
    rows = connection.execute(query.order_by(columns.seq)).mappings().all()
    return tuple(
        dict(row) | {"payload": _payload(row["payload"]), "is_claimed": is_claimed_actor(row["actor"])} for row in rows
    )


def _payload(stored: str) -> Any:
    """Return the details; the text itself where somebody broke it, which `audit verify` will say."""
    try:
        return json.loads(stored)
    except ValueError:
        return stored


def _plain(row: RowMapping) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, UUID) else value for name, value in row.items()}
