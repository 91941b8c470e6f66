"""Side effects that are owed, in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, Row, Update, func, literal, or_, select, text, update

from pipeline.adapters.sql.audit import AuditLine, append_all
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.tables import outbox
from pipeline.domain.audit import SYSTEM_CHAIN, AuditAction
from pipeline.domain.errors import UnknownRecord
from pipeline.domain.retries import rule_of
from pipeline.services.ports import CLAIM, POSTPONED, OutboxItem

RELAY = "relay"
"""Who gives an item up, in the history."""

_is_open = outbox.c.done_at.is_(None) & outbox.c.given_up_at.is_(None)
_item = (
    outbox.c.outbox_id,
    outbox.c.kind,
    outbox.c.dedup_key,
    outbox.c.payload,
    outbox.c.attempts,
    outbox.c.claim,
)

_OWE = text("""
INSERT INTO outbox (kind, dedup_key, payload, stream)
SELECT * FROM unnest(
    CAST(:kinds AS text[]), CAST(:keys AS text[]), CAST(:payloads AS jsonb[]), CAST(:streams AS text[])
)
ON CONFLICT (dedup_key) DO NOTHING
""")

_KINDS_DUE = text("""
SELECT named.kind FROM unnest(CAST(:kinds AS text[])) AS named (kind)
WHERE EXISTS (
    SELECT FROM outbox o WHERE o.kind = named.kind AND o.done_at IS NULL AND o.given_up_at IS NULL
    AND o.next_attempt_at <= clock_timestamp()
)
""")

_RESEND = text("""
SELECT outbox_id::text, kind, dedup_key, payload, is_closed FROM resend_given_up(CAST(:chosen AS uuid[])) ORDER BY 1
""")


@dataclass(frozen=True, kw_only=True, slots=True)
class Debt:
    """A side effect to owe."""

    kind: str
    """`doorbell`, `result`, `dead_letter`, `register`, `reregister`, `champion` or `webhook`."""
    dedup_key: str
    """Deterministic: a transaction that runs twice owes it once."""
    payload: Mapping[str, Any]
    """What the goal is about."""
    stream: str | None = None
    """Items of one stream are carried out one after the other, in the order in which they were owed."""


def owe(connection: Connection, *, kind: str, dedup_key: str, payload: Mapping[str, Any]) -> None:
    """Owe a side effect; a key that was owed before, done or not, owes nothing more."""
    owe_all(connection, [Debt(kind=kind, dedup_key=dedup_key, payload=payload)])


def owe_all(connection: Connection, debts: Sequence[Debt]) -> None:
    """Owe several side effects in one statement, in the order given."""
    if debts:
        columns = {
            "kinds": [debt.kind for debt in debts],
            "keys": [debt.dedup_key for debt in debts],
            "payloads": [json.dumps(dict(debt.payload)) for debt in debts],
            "streams": [debt.stream for debt in debts],
        }
        connection.execute(_OWE, columns)


class SqlOutboxStore:
    """What relays ask."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, kind: str | None = None, *, limit: int = 100) -> tuple[OutboxItem, ...]:
        """Claim items that are due, oldest first; of a stream only its oldest."""
        earlier = outbox.alias()
        waits = select(literal(1)).where(
            earlier.c.stream == outbox.c.stream,
            earlier.c.done_at.is_(None),
            earlier.c.given_up_at.is_(None),
            earlier.c.outbox_id < outbox.c.outbox_id,
        )
        is_due = _is_open & (outbox.c.next_attempt_at <= func.clock_timestamp())
        oldest = select(outbox.c.outbox_id).where(is_due, or_(outbox.c.stream.is_(None), ~waits.exists()))
        if kind is not None:
            oldest = oldest.where(outbox.c.kind == kind)
        claimed = oldest.order_by(outbox.c.outbox_id).limit(limit).with_for_update(skip_locked=True).cte("claimed")
        take = (
            update(outbox)
            .where(outbox.c.outbox_id == claimed.c.outbox_id)
            .values(next_attempt_at=func.clock_timestamp() + CLAIM, claim=str(uuid4()))
            .returning(*_item)
        )
        with transaction(self._engine) as connection:
            rows = connection.execute(take).mappings().all()
        return tuple(OutboxItem(**row) for row in sorted(rows, key=lambda row: str(row["outbox_id"])))

    def kinds_due(self, kinds: Sequence[str]) -> frozenset[str]:
        """Return which of these kinds have an item that is due; claims nothing."""
        with transaction(self._engine) as connection:
            return frozenset(connection.execute(_KINDS_DUE, {"kinds": list(kinds)}).scalars())

    def renew(self, items: Sequence[OutboxItem]) -> frozenset[str]:
        """Keep the claims of items for another minute; return the ids of those that are still ours and not done."""
        change = _still_ours(items).values(next_attempt_at=func.clock_timestamp() + CLAIM)
        with transaction(self._engine) as connection:
            return frozenset(connection.execute(change.returning(outbox.c.outbox_id)).scalars())

    def release(self, items: Sequence[OutboxItem]) -> None:
        """Give claims back, so that the items are due at once."""
        with transaction(self._engine) as connection:
            connection.execute(_still_ours(items).values(next_attempt_at=func.clock_timestamp(), claim=None))

    def done(self, outbox_ids: Sequence[str]) -> None:
        """Note that goals are reached.

        Raises:
            UnknownRecord: if nothing is owed under one of the ids.
        """
        done_at = func.coalesce(outbox.c.done_at, func.clock_timestamp())
        change = update(outbox).where(outbox.c.outbox_id.in_(outbox_ids)).returning(outbox.c.outbox_id)
        with transaction(self._engine) as connection:
            found = connection.execute(change.values(done_at=done_at, given_up_at=None, error=None)).scalars()
            unknown = sorted(set(outbox_ids) - set(found))
            if unknown:
                said = f"expected the id of an owed side effect, got {unknown[0]}"
                raise UnknownRecord(said, outbox_id=unknown[0])

    def postponed(self, item: OutboxItem, *, error: str, wait: timedelta = POSTPONED) -> None:
        """Try again after a wait, which counts as no try: the service is away, which says nothing of the item."""
        later = func.clock_timestamp() + wait
        with transaction(self._engine) as connection:
            connection.execute(_still_ours([item]).values(next_attempt_at=later, claim=None, error=_text(error)))

    def failed(self, item: OutboxItem, *, error: str) -> bool:
        """Try again later, by the rule of the item's kind; give the item up after the last try.

        Returns:
            Whether the item was given up. It is left as it is if the claim was lost.
        """
        rule = rule_of(item.kind)
        is_last, wait = rule.is_last(item.attempts), rule.wait(item.attempts)
        values = {"attempts": item.attempts + 1, "next_attempt_at": func.clock_timestamp() + wait, "claim": None}
        if is_last:
            values["given_up_at"] = func.clock_timestamp()
        with transaction(self._engine) as connection:
            change = _still_ours([item]).values(**values, error=_text(error))
            rows = connection.execute(change.returning(*_item)).all()
            if is_last:
                details = {"attempts": item.attempts + 1, "error": _text(error)}
                _audit(connection, rows, AuditAction.side_effect_given_up, actor=RELAY, details=details)
        return is_last and bool(rows)

    def counts(self, *, without: Sequence[str] = ()) -> Mapping[str, Any]:
        """Return how many items are owed, fail and are given up, and since when the oldest waits.

        `failing` are those of the owed that were tried in vain and will be tried again.

        Args:
            without: kinds that are left out.
        """
        is_counted = outbox.c.kind.not_in(without)
        failing = func.count().filter(outbox.c.attempts > 0)
        waiting = select(func.count(), func.min(outbox.c.created_at), failing).where(_is_open, is_counted)
        given_up = select(func.count(), func.min(outbox.c.given_up_at)).where(_is_given_up(), is_counted)
        with transaction(self._engine) as connection:
            num_owed, owed_since, num_failing = connection.execute(waiting).one()
            num_given_up, given_up_since = connection.execute(given_up).one()
        return {
            "owed": num_owed,
            "owed_since": owed_since,
            "failing": num_failing,
            "given_up": num_given_up,
            "given_up_since": given_up_since,
        }

    def failing(self, *, limit: int = 100) -> tuple[Mapping[str, Any], ...]:
        """Return the items that were tried in vain and will be tried again, the oldest first."""
        columns = (*_item[:-1], outbox.c.created_at, outbox.c.next_attempt_at, outbox.c.error)
        query = select(*columns).where(_is_open, outbox.c.attempts > 0)
        with transaction(self._engine) as connection:
            found = connection.execute(query.order_by(outbox.c.outbox_id).limit(limit)).mappings()
            return tuple(dict(row) for row in found)

    def given_up(self, *, limit: int = 100) -> tuple[Mapping[str, Any], ...]:
        """Return the items that no relay tries any more, longest first."""
        columns = (*_item[:-1], outbox.c.created_at, outbox.c.given_up_at, outbox.c.error)
        query = select(*columns).where(_is_given_up()).order_by(outbox.c.given_up_at).limit(limit)
        with transaction(self._engine) as connection:
            return tuple(dict(row) for row in connection.execute(query).mappings())

    def resend(self, outbox_ids: Sequence[str] | None, *, actor: str, reason: str = "") -> tuple[str, ...]:
        """Owe given-up items anew, with all their tries; return the ids of those that were given up.

        A result that a later one of the same edit has overtaken is closed instead: sent now, it would be the last word.

        Args:
            outbox_ids: which ones; all of them if None.
            actor: who asks, for the history.
            reason: why, in their words.
        """
        details = {"reason": reason} if reason else {}
        with transaction(self._engine) as connection:
            rows = connection.execute(_RESEND, {"chosen": None if outbox_ids is None else list(outbox_ids)}).all()
            closed = [row for row in rows if row.is_closed]
            sent = [row for row in rows if not row.is_closed]
            _audit(connection, closed, AuditAction.side_effect_closed, actor=actor, details=details)
            _audit(connection, sent, AuditAction.side_effect_resent, actor=actor, details=details)
        return tuple(str(row.outbox_id) for row in (*closed, *sent))


def _still_ours(items: Sequence[OutboxItem]) -> Update:
    """Return an update of those items that nobody else has claimed since."""
    ids = [item.outbox_id for item in items]
    return update(outbox).where(
        outbox.c.outbox_id.in_(ids), outbox.c.claim.in_({item.claim for item in items}), _is_open
    )


def _is_given_up() -> Any:
    return outbox.c.given_up_at.is_not(None) & outbox.c.done_at.is_(None)


def _audit(
    connection: Connection, rows: Sequence[Row[Any]], action: AuditAction, *, actor: str, details: Mapping[str, Any]
) -> None:
    append_all(
        connection,
        [
            AuditLine(
                chain=str(row.payload.get("lineage") or SYSTEM_CHAIN),
                actor=actor,
                action=action,
                subject=row.outbox_id,
                payload={"kind": row.kind, "dedup_key": row.dedup_key, **details},
            )
            for row in rows
        ],
    )


def _text(error: str) -> str:
    return error.replace("\x00", "").encode("utf-8", "backslashreplace").decode()[:2000]
