"""Side effects that are owed, in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, func, select, text, update

from pipeline.adapters.sql.engine import transaction
from pipeline.adapters.sql.tables import outbox
from pipeline.domain.errors import UnknownRecord
from pipeline.services.ports import OutboxItem

CLAIM = timedelta(minutes=1)
"""For so long nobody else gets an item that a relay has taken."""
FIRST_WAIT = timedelta(seconds=1)
LONGEST_WAIT = timedelta(minutes=2)

_OWE = text("""
INSERT INTO outbox (kind, dedup_key, payload)
SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:keys AS text[]), CAST(:payloads AS jsonb[]))
ON CONFLICT (dedup_key) DO NOTHING
""")


@dataclass(frozen=True, kw_only=True, slots=True)
class Debt:
    """A side effect to owe."""

    kind: str
    """`doorbell`, `result`, `dead_letter`, `register` or `champion`."""
    dedup_key: str
    """Deterministic: a transaction that runs twice owes it once."""
    payload: Mapping[str, Any]
    """What the goal is about."""


def owe(connection: Connection, *, kind: str, dedup_key: str, payload: Mapping[str, Any]) -> None:
    """Owe a side effect; a key that was owed before, done or not, owes nothing more."""
    owe_all(connection, [Debt(kind=kind, dedup_key=dedup_key, payload=payload)])


def owe_all(connection: Connection, debts: Sequence[Debt]) -> None:
    """Owe several side effects in one statement, in the order given."""
    if debts:
        kinds, keys = [debt.kind for debt in debts], [debt.dedup_key for debt in debts]
        payloads = [json.dumps(dict(debt.payload)) for debt in debts]
        connection.execute(_OWE, {"kinds": kinds, "keys": keys, "payloads": payloads})


class SqlOutboxStore:
    """What relays ask."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, *, limit: int = 100) -> tuple[OutboxItem, ...]:
        """Claim items that are due, oldest first, so that no other relay has them for a minute."""
        is_due = outbox.c.done_at.is_(None) & (outbox.c.next_attempt_at <= func.clock_timestamp())
        oldest = select(outbox.c.outbox_id).where(is_due).order_by(outbox.c.outbox_id).limit(limit)
        claimed = oldest.with_for_update(skip_locked=True).cte("claimed")
        take = (
            update(outbox)
            .where(outbox.c.outbox_id == claimed.c.outbox_id)
            .values(next_attempt_at=func.clock_timestamp() + CLAIM)
            .returning(outbox.c.outbox_id, outbox.c.kind, outbox.c.dedup_key, outbox.c.payload, outbox.c.attempts)
        )
        with transaction(self._engine) as connection:
            rows = connection.execute(take).mappings().all()
        return tuple(OutboxItem(**row) for row in sorted(rows, key=lambda row: str(row["outbox_id"])))

    def done(self, outbox_id: str) -> None:
        """Note that the goal is reached.

        Raises:
            UnknownRecord: if nothing is owed under that id.
        """
        done_at = func.coalesce(outbox.c.done_at, func.clock_timestamp())
        self._change(outbox_id, {"done_at": done_at, "error": None})

    def failed(self, outbox_id: str, *, error: str) -> None:
        """Try again later: after a second, and twice as long every time, up to two minutes.

        Raises:
            UnknownRecord: if nothing is owed under that id.
        """
        doublings = func.least(outbox.c.attempts, 20)
        wait = func.least(FIRST_WAIT * func.power(2, doublings), LONGEST_WAIT)
        later = func.clock_timestamp() + wait
        said = error.replace("\x00", "")[:2000]
        self._change(outbox_id, {"attempts": outbox.c.attempts + 1, "next_attempt_at": later, "error": said})

    def _change(self, outbox_id: str, values: Mapping[str, Any]) -> None:
        with transaction(self._engine) as connection:
            changed = connection.execute(update(outbox).where(outbox.c.outbox_id == outbox_id).values(**values))
            if changed.rowcount == 0:
                raise UnknownRecord(f"expected the id of an owed side effect, got {outbox_id}", outbox_id=outbox_id)
