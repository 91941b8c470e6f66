"""The work of a lineage in PostgreSQL: which edits wait, which conflict, and what becomes of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, literal, select, update

from pipeline.adapters.sql.active_sets import (
    edited_names,
    held_by_head,
    holding,
    related_subjects,
    retained_ids,
    siblings,
)
from pipeline.adapters.sql.approving.decisions import fail_removal, next_removal, put_off_removal
from pipeline.adapters.sql.companions import companions
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import LockedLineage, lineage_id_of
from pipeline.adapters.sql.database.rows import claimant_of, edit_of, insert_report, is_uuid
from pipeline.adapters.sql.database.tables import (
    ORDER_OF_CLAIMS,
    batch_edits,
    edit_batches,
    edit_requests,
    lineages,
    status_is,
)
from pipeline.adapters.sql.leases import check
from pipeline.adapters.sql.statuses import UNDECIDED, Move, move, put_back, restore_queued
from pipeline.domain.batches import EditBatch, Setback, displaced_by
from pipeline.domain.conflicts import superseded
from pipeline.domain.edits import Edit
from pipeline.domain.errors import InvalidInput, UnknownRecord
from pipeline.domain.gates import GateReport
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.lineages import Lease, Removal

_OLDEST_FIRST = [edit_requests.c[name] for name in ORDER_OF_CLAIMS]


QUIET_SHARE = 0.25
"""A batch also closes when no edit has come for this share of its longest wait."""


class SqlEditQueue:
    """What a worker asks for and gives back, every time under its lease."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim_batch(self, lease: Lease, *, limit: int, max_wait: timedelta) -> EditBatch | None:
        """Claim due edits, oldest first, after conflicts are resolved; None if no batch is due.

        A batch is due when it is full, when its oldest edit has waited, or when no other has come for a while.

        Raises:
            LeaseLost: if the lease is no longer ours; nothing was written.
            InvalidInput: if the batch before is not finished: a lineage has one at a time.
        """
        with transaction(self._engine) as connection:
            on = check(connection, lease)
            if on.hold is not None:
                return None
            _refuse_second_batch(connection, on)
            front = _resolved_front(connection, on, limit=limit, actor=lease.owner)
            waiting, limit = companions(connection, front, limit=limit)
            if not waiting or not _is_closed(connection, waiting, limit=limit, max_wait=max_wait):
                return None
            return _claim(connection, on, lease, waiting)

    def is_filling(self, lineage: str) -> bool:
        """Return whether edits are due whose batch is not closed yet; False while the lineage is held."""
        is_due = status_is(EditStatus.received) & (edit_requests.c.next_attempt_at <= func.clock_timestamp())
        of_lineage = edit_requests.c.lineage_id == lineages.c.lineage_id
        query = select(select(literal(1)).where(of_lineage, is_due).exists()).where(
            lineages.c.name == lineage, lineages.c.hold.is_(None)
        )
        with transaction(self._engine) as connection:
            return bool(connection.execute(query).scalar())

    def release(
        self,
        lease: Lease,
        edit_ids: Sequence[str],
        *,
        reason: str,
        max_attempts: int,
        setback: Setback = Setback.alone,
    ) -> None:
        """Put claimed edits back, to be tried again as their setback says; `dead` at `max_attempts`.

        Edits that are no longer claimed are left as they are: their batch may have been committed in part.
        """
        with transaction(self._engine) as connection:
            on = check(connection, lease)
            put_back(
                connection,
                _claimed(connection, on, edit_ids),
                on=on,
                actor=lease.owner,
                reason=reason,
                setback=setback,
                max_attempts=max_attempts,
            )

    def nothing_works(self, lineage: str, edit_id: str) -> bool:
        """Return whether another edit died, and none was judged, since this one was first tried without a verdict.

        Then it is more likely that the ranks fail with every edit than that both are to blame.
        """
        of_lineage = edit_batches.c.lineage_id == lineages.c.lineage_id
        tried = batch_edits.join(edit_batches, edit_batches.c.batch_id == batch_edits.c.batch_id)
        first = (
            select(func.min(edit_batches.c.ordinal))
            .select_from(tried)
            .where(batch_edits.c.edit_id == edit_id, batch_edits.c.outcome == UNDECIDED)
            .scalar_subquery()
        )
        since = (
            select(literal(1))
            .select_from(tried)
            .where(of_lineage, edit_batches.c.ordinal >= first, batch_edits.c.edit_id != edit_id)
        )
        died = since.where(batch_edits.c.outcome == EditStatus.dead.value).exists()
        judged = since.where(
            batch_edits.c.outcome.in_([EditStatus.snapshotted.value, EditStatus.rejected.value])
        ).exists()
        with transaction(self._engine) as connection:
            return bool(connection.scalar(select(died & ~judged).where(lineages.c.name == lineage)))

    def reject(self, lease: Lease, reasons: Mapping[str, str], *, report: GateReport) -> None:
        """Reject claimed edits, each with what was measured; the report is kept.

        Raises:
            IllegalTransition: if an edit is not claimed.
        """
        with transaction(self._engine) as connection:
            on = check(connection, lease)
            report_id = insert_report(connection, on.lineage_id, report, snapshot_digest=None)
            moves = [
                Move(edit_id=edit_id, to=EditStatus.rejected, reason=reason, gate_report_id=report_id)
                for edit_id, reason in reasons.items()
            ]
            move(connection, moves, on=on, actor=lease.owner)
            restore_queued(connection, sorted(reasons), on=on, actor=lease.owner)

    def next_removal(self, lease: Lease) -> Removal | None:
        """Return the oldest removal that is due, also while the lineage is held; without what is already gone."""
        with transaction(self._engine) as connection:
            return next_removal(connection, check(connection, lease), actor=lease.owner)

    def put_off_removal(self, lease: Lease, removal: Removal, *, reason: str, is_attempt: bool) -> None:
        """Note why a removal came to no end, and whether that counts: it does not where something else failed."""
        with transaction(self._engine) as connection:
            check(connection, lease)
            put_off_removal(connection, removal.removal_id, reason=reason, is_attempt=is_attempt)

    def fail_removal(self, lease: Lease, removal: Removal, *, reason: str, report: GateReport | None) -> None:
        """Record that a removal did not pass its gate; the head stays and a person decides."""
        with transaction(self._engine) as connection:
            on = check(connection, lease)
            fail_removal(connection, on, removal, reason=reason, report=report, actor=lease.owner)

    def edits(self, lineage: str, edit_ids: Sequence[str]) -> tuple[Edit, ...]:
        """Return edits by id, in the order asked.

        Raises:
            UnknownRecord: if an id names no edit of the lineage.
        """
        query = (
            select(edit_requests)
            .join(lineages, lineages.c.lineage_id == edit_requests.c.lineage_id)
            .where(lineages.c.name == lineage, edit_requests.c.edit_id.in_([one for one in edit_ids if is_uuid(one)]))
        )
        with transaction(self._engine) as connection:
            found = {row.edit_id: edit_of(row, lineage) for row in connection.execute(query)}
        missing = [edit_id for edit_id in edit_ids if edit_id not in found]
        if missing:
            raise UnknownRecord(f"expected an edit of {lineage!r}, got {missing[0]}", edit_id=missing[0])
        return tuple(found[edit_id] for edit_id in edit_ids)

    def active(self, lineage: str) -> tuple[Edit, ...]:
        """Return every edit that the head holds, in the order in which they came in: for work that needs them all.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            held = held_by_head(connection, lineage_id_of(connection, lineage))
        return tuple(edit_of(row, lineage) for row in held)

    def retention_sample(self, lineage: str, *, seed: str, removed_ids: Sequence[str]) -> tuple[Edit, ...]:
        """Active edits of the head to measure again, stratified by age, oldest first.

        The same seed and head give the same sample; edits that a candidate removes are not in it.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            ids = retained_ids(connection, lineage_id_of(connection, lineage), seed=seed, removed_ids=removed_ids)
            rows = connection.execute(select(edit_requests).where(edit_requests.c.edit_id.in_(ids))).all()
        found = {row.edit_id: edit_of(row, lineage) for row in rows}
        return tuple(found[edit_id] for edit_id in ids)

    def siblings(self, lineage: str, changed_ids: Sequence[str], *, limit: int) -> tuple[Edit, ...]:
        """Return active edits about the subjects of edits that come or go, without those; in the order of their places.

        The newest `SIBLINGS` of a subject at most, and of all subjects the newest that `limit` allows.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            rows = siblings(connection, lineage_id_of(connection, lineage), changed_ids, limit=limit)
        return tuple(edit_of(row, lineage) for row in rows)

    def active_keys(self, lineage: str, keys: Sequence[str], *, removed_ids: Sequence[str]) -> tuple[str, ...]:
        """Return those of some conflict keys whose fact the head holds an edit of, besides the removed ones; sorted."""
        with transaction(self._engine) as connection:
            held = holding(connection, keys)
        return tuple(sorted(row.conflict_key for row in held if row.edit_id not in removed_ids))

    def edited_names(self, lineage: str, names: Sequence[str]) -> tuple[str, ...]:
        """Return those of some names, in lower case, that the head holds edits of, whatever of them was corrected.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            return tuple(edited_names(connection, lineage_id_of(connection, lineage), names))

    def related_subjects(self, lineage: str, edits: Sequence[Edit]) -> dict[str, tuple[str, ...]]:
        """Return, by edit, subjects of earlier requests of its relation that no active edit is about, newest first.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        relations = {edit.edit_id: edit.request.relation for edit in edits if edit.request.relation}
        if not relations:
            return {}
        with transaction(self._engine) as connection:
            found = related_subjects(connection, lineage_id_of(connection, lineage), set(relations.values()))
        return {edit_id: found[relation] for edit_id, relation in relations.items() if relation in found}


def _refuse_second_batch(connection: Connection, on: LockedLineage) -> None:
    query = select(edit_requests.c.edit_id).where(
        edit_requests.c.lineage_id == on.lineage_id, status_is(EditStatus.claimed)
    )
    claimed = connection.scalar(query.limit(1))
    if claimed is not None:
        message = f"expected the batch before to be finished on {on.name!r}, got edit {claimed} still claimed"
        raise InvalidInput(message, lineage=on.name, edit_id=claimed)


def _resolved_front(connection: Connection, on: LockedLineage, *, limit: int, actor: str) -> Sequence[Row[Any]]:
    """Return the first due edits, after every one that another correction makes needless has left the queue."""
    while True:
        front = _front(connection, on, limit)
        keys = {row.conflict_key for row in front}
        losers = superseded(
            [claimant_of(row) for row in _waiting_of(connection, on, keys)],
            [claimant_of(row) for row in holding(connection, keys)],
        )
        if not losers:
            return front
        moves = [
            Move(
                edit_id=loser.edit_id,
                to=EditStatus.superseded,
                reason=loser.reason,
                superseded_by=loser.superseded_by,
            )
            for loser in losers
        ]
        move(connection, moves, on=on, actor=actor)


def _front(connection: Connection, on: LockedLineage, limit: int) -> Sequence[Row[Any]]:
    query = select(edit_requests).where(
        edit_requests.c.lineage_id == on.lineage_id,
        status_is(EditStatus.received),
        edit_requests.c.next_attempt_at <= func.clock_timestamp(),
    )
    return connection.execute(query.order_by(*_OLDEST_FIRST).limit(limit)).all()


def _waiting_of(connection: Connection, on: LockedLineage, keys: set[str]) -> Sequence[Row[Any]]:
    """Return everything that waits for these facts, due or not: a later correction that waits longer still wins."""
    query = select(edit_requests).where(
        edit_requests.c.lineage_id == on.lineage_id,
        status_is(EditStatus.received),
        edit_requests.c.conflict_key.in_(keys),
    )
    return connection.execute(query).all()


def _is_closed(connection: Connection, waiting: Sequence[Row[Any]], *, limit: int, max_wait: timedelta) -> bool:
    if len(waiting) >= limit:
        return True
    received = [row.received_at for row in waiting]
    now = connection.execute(select(func.clock_timestamp())).scalar_one()
    return bool(now - min(received) >= max_wait or now - max(received) >= max_wait * QUIET_SHARE)


def _claim(connection: Connection, on: LockedLineage, lease: Lease, waiting: Sequence[Row[Any]]) -> EditBatch:
    ordinal = on.num_batches + 1
    of_lineage = lineages.c.lineage_id == on.lineage_id
    connection.execute(update(lineages).where(of_lineage).values(num_batches=ordinal))
    opened = {
        "lineage_id": on.lineage_id,
        "ordinal": ordinal,
        "parent_snapshot_id": on.head_id,
        "lease_epoch": lease.epoch,
    }
    batch_id: str = connection.execute(
        insert(edit_batches).values(opened).returning(edit_batches.c.batch_id)
    ).scalar_one()
    connection.execute(insert(batch_edits), [{"batch_id": batch_id, "edit_id": row.edit_id} for row in waiting])
    about = {"batch": batch_id, "ordinal": ordinal, "epoch": lease.epoch}
    moves = [Move(edit_id=row.edit_id, to=EditStatus.claimed, about=about) for row in waiting]
    move(connection, moves, on=on, actor=lease.owner)
    edits = tuple(edit_of(row, on.name) for row in waiting)
    return EditBatch(
        batch_id=batch_id,
        lineage=on.name,
        ordinal=ordinal,
        parent_id=on.head_id,
        edits=edits,
        displaced=_displaced(connection, on, edits),
    )


def _displaced(connection: Connection, on: LockedLineage, edits: Sequence[Edit]) -> tuple[tuple[str, str], ...]:
    held = holding(connection, {edit.request.conflict_key for edit in edits})
    return displaced_by(edits, [edit_of(row, on.name) for row in held])


def _claimed(connection: Connection, on: LockedLineage, edit_ids: Sequence[str]) -> Sequence[Row[Any]]:
    query = select(edit_requests).where(
        edit_requests.c.lineage_id == on.lineage_id,
        edit_requests.c.edit_id.in_(edit_ids),
        status_is(EditStatus.claimed),
    )
    return connection.execute(query.order_by(*_OLDEST_FIRST)).all()
