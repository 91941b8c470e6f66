"""Who may write a lineage now: leases in PostgreSQL, whose epoch is checked by every write of their owner."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Interval, Row, cast, func, literal, literal_column, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import LockedLineage, lock_lineage
from pipeline.adapters.sql.database.tables import (
    batch_edits,
    edit_batches,
    edit_requests,
    is_owed,
    leases,
    lineages,
    removals,
    status_is,
)
from pipeline.adapters.sql.outbox import owe
from pipeline.adapters.sql.statuses import put_back
from pipeline.domain.audit import AuditAction
from pipeline.domain.batches import Setback
from pipeline.domain.errors import LeaseLost
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.lineages import Activity, Lease, Work

NOBODY = ""
"""Owner of a lease that was given back; its epoch stays."""


def check(connection: Connection, lease: Lease) -> LockedLineage:
    """Lock a lease and its lineage, so that nobody takes either before this transaction ends.

    Raises:
        LeaseLost: if somebody else owns the lineage, or the lease has expired.
    """
    query = (
        select(leases)
        .join(lineages, lineages.c.lineage_id == leases.c.lineage_id)
        .where(lineages.c.name == lease.lineage)
        .with_for_update(of=leases)
    )
    row = connection.execute(query).one_or_none()
    if row is None or (row.owner, row.epoch) != (lease.owner, lease.epoch):
        raise _lost(lease, "another owner has taken it")
    locked = lock_lineage(connection, lease.lineage)
    # Asked after the waits for both locks: expiry counts from now, not from when the waiting began.
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    if row.expires_at <= now:
        raise _lost(lease, f"it expired at {row.expires_at.isoformat()}")
    return locked


class SqlLeaseStore:
    """Leases with an epoch that only grows. Time is the database's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def acquire(self, lineage: str, *, owner: str, ttl: timedelta, max_attempts: int) -> Lease | None:
        """Take a free or expired lease, with a higher epoch; None while somebody else holds it.

        What the owner before had claimed goes back to the queue. If that owner died over it, what was claimed alone
        has had one attempt more, or is `dead` if that was the last.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            row = _take(connection, lineage, owner, ttl)
            locked = lock_lineage(connection, lineage)
            if row is None:
                return None
            _audit_takeover(connection, locked, row, owner=owner)
            is_crash = row.old_owner not in (None, NOBODY, owner)
            _release_claims(connection, locked, owner=owner, is_crash=is_crash, max_attempts=max_attempts)
            return Lease(lineage=lineage, owner=owner, epoch=row.epoch, expires_at=row.expires_at)

    def renew(self, lease: Lease, *, ttl: timedelta) -> Lease:
        """Prolong a lease by its full life.

        Raises:
            LeaseLost: if it expired or was taken.
        """
        prolong = update(leases).where(_is_ours(lease)).values(expires_at=_after(ttl)).returning(leases.c.expires_at)
        with transaction(self._engine) as connection:
            expires_at = connection.execute(prolong).scalar_one_or_none()
        if expires_at is None:
            raise _lost(lease, "it expired or another owner has taken it")
        return Lease(lineage=lease.lineage, owner=lease.owner, epoch=lease.epoch, expires_at=expires_at)

    def release(self, lease: Lease, *, rings: bool = False) -> None:
        """Give it back, and ring if work is left; nothing happens if it was lost."""
        give_back = (
            update(leases)
            .where(_is_ours(lease))
            .values(owner=NOBODY, expires_at=func.clock_timestamp(), doing=None, doing_since=None)
        )
        with transaction(self._engine) as connection:
            if connection.execute(give_back).rowcount and rings:
                base = select(lineages.c.base_digest).where(lineages.c.name == lease.lineage)
                payload = {"lineage": lease.lineage, "base_digest": connection.scalar(base)}
                key = f"doorbell:{lease.lineage}:released:{lease.epoch}"
                owe(connection, kind="doorbell", dedup_key=key, payload=payload)

    def note(self, lease: Lease, work: Work, *, begins: bool = False) -> None:
        """Say what the owner is doing; nothing happens if the lease was lost.

        Args:
            lease: of the owner.
            work: the piece of work and how far it is; it stands until the next one begins or the lease is given back.
            begins: whether the piece of work begins now.
        """
        since = func.clock_timestamp() if begins else leases.c.doing_since
        with transaction(self._engine) as connection:
            connection.execute(update(leases).where(_is_ours(lease)).values(doing=work.as_json(), doing_since=since))

    def activities(self) -> Mapping[str, Activity]:
        """Return what is being done now, by the name of the lineage; a lineage without a living lease is left out."""
        seconds = func.extract("epoch", func.clock_timestamp() - leases.c.doing_since)
        query = (
            select(lineages.c.name, leases.c.owner, leases.c.doing, func.coalesce(seconds, 0).label("seconds"))
            .join(lineages, lineages.c.lineage_id == leases.c.lineage_id)
            .where(leases.c.owner != NOBODY, leases.c.expires_at > func.clock_timestamp())
        )
        with transaction(self._engine) as connection:
            rows = connection.execute(query).all()
        return {
            row.name: Activity(
                owner=row.owner, work=Work.from_json(row.doing) if row.doing else None, seconds=float(row.seconds)
            )
            for row in rows
        }

    def waiting(self) -> tuple[str, ...]:
        """Return the names of lineages that have work (due edits or removals), no live lease and no hold that stops it.

        Edits that a dead worker left claimed are work too: taking the lease puts them back.
        """
        query = select(lineages.c.name).where(_is_waiting()).order_by(lineages.c.name)
        with transaction(self._engine) as connection:
            return tuple(connection.execute(query).scalars())

    def others_wait(self, lineage: str) -> bool:
        """Return whether another lineage of the same base has work and nobody at it."""
        mine = select(lineages.c.base_digest).where(lineages.c.name == lineage).scalar_subquery()
        other = select(literal(1)).where(lineages.c.base_digest == mine, lineages.c.name != lineage, _is_waiting())
        with transaction(self._engine) as connection:
            return bool(connection.scalar(select(other.exists())))


def _take(connection: Connection, lineage: str, owner: str, ttl: timedelta) -> Row[Any] | None:
    """Take a lease in one conditional upsert; None while somebody else's lives, or if there is no such lineage."""
    source = select(lineages.c.lineage_id, literal(owner), literal(1), _after(ttl)).where(lineages.c.name == lineage)
    fresh = insert(leases).from_select(["lineage_id", "owner", "epoch", "expires_at"], source)
    upsert = fresh.on_conflict_do_update(
        index_elements=["lineage_id"],
        set_={
            "owner": owner,
            "epoch": leases.c.epoch + 1,
            "expires_at": _after(ttl),
            "doing": None,
            "doing_since": None,
        },
        where=or_(leases.c.expires_at <= func.clock_timestamp(), leases.c.owner == owner),
    )
    old_owner: Any = literal_column("old.owner").label("old_owner")
    return connection.execute(upsert.returning(leases.c.epoch, leases.c.expires_at, old_owner)).one_or_none()


def _audit_takeover(connection: Connection, on: LockedLineage, row: Row[Any], *, owner: str) -> None:
    if row.old_owner not in (None, NOBODY, owner):
        payload = {"from": row.old_owner, "to": owner, "epoch": row.epoch}
        append(
            connection,
            chain=on.name,
            actor=owner,
            action=AuditAction.lease_taken,
            subject=on.lineage_id,
            payload=payload,
        )


def _release_claims(
    connection: Connection, on: LockedLineage, *, owner: str, is_crash: bool, max_attempts: int
) -> None:
    """Put back what the owner before left claimed; an owner that gave its lease back did not die over it."""
    claimed = select(edit_requests).where(edit_requests.c.lineage_id == on.lineage_id, status_is(EditStatus.claimed))
    left = connection.execute(claimed.order_by(edit_requests.c.edit_id)).all()
    put_back(
        connection,
        left,
        on=on,
        actor=owner,
        reason=f"the worker that had claimed it {'lost its lease' if is_crash else 'was stopped'}",
        setback=_setback_of_a_crash(connection, on) if is_crash else Setback.untried,
        max_attempts=max_attempts,
    )


def _setback_of_a_crash(connection: Connection, on: LockedLineage) -> Setback:
    """Return what a crash over the open batch says of its edits."""
    of_open = batch_edits.join(edit_batches, edit_batches.c.batch_id == batch_edits.c.batch_id)
    query = select(func.count()).select_from(of_open)
    is_open = (edit_batches.c.lineage_id == on.lineage_id) & edit_batches.c.finished_at.is_(None)
    return Setback.together if (connection.scalar(query.where(is_open)) or 0) > 1 else Setback.alone


def _is_waiting() -> Any:
    """Return whether a row of `lineages` has work that a worker may do, and no live lease."""
    has_due = _has_edits(EditStatus.received, edit_requests.c.next_attempt_at <= func.clock_timestamp())
    has_removal = select(literal(1)).where(removals.c.lineage_id == lineages.c.lineage_id, is_owed())
    is_leased = select(literal(1)).where(
        leases.c.lineage_id == lineages.c.lineage_id, leases.c.expires_at > func.clock_timestamp()
    )
    has_work = or_(lineages.c.hold.is_(None) & has_due, has_removal.exists(), _has_edits(EditStatus.claimed))
    return has_work & ~is_leased.exists()


def _has_edits(status: EditStatus, *conditions: Any) -> Any:
    of_lineage = edit_requests.c.lineage_id == lineages.c.lineage_id
    return select(literal(1)).where(of_lineage, status_is(status), *conditions).exists()


def _is_ours(lease: Lease) -> Any:
    lineage_id = select(lineages.c.lineage_id).where(lineages.c.name == lease.lineage).scalar_subquery()
    return (
        (leases.c.lineage_id == lineage_id)
        & (leases.c.owner == lease.owner)
        & (leases.c.epoch == lease.epoch)
        & (leases.c.expires_at > func.clock_timestamp())
    )


def _after(ttl: timedelta) -> Any:
    return func.clock_timestamp() + cast(literal(ttl), Interval)


def _lost(lease: Lease, why: str) -> LeaseLost:
    message = f"expected to hold the lease on {lease.lineage!r} at epoch {lease.epoch}: {why}"
    return LeaseLost(message, lineage=lease.lineage, owner=lease.owner)
