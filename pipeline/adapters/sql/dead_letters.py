"""Messages that can never be an edit, in PostgreSQL."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, Row, func, select, update

from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.rows import is_uuid, record_of
from pipeline.adapters.sql.database.tables import dead_letters
from pipeline.domain.audit import SYSTEM_CHAIN, AuditAction
from pipeline.domain.contract.messages import DeadLetter, Message, PartitionKey
from pipeline.domain.errors import UnknownRecord


class SqlDeadLetterStore:
    """Reads dead letters, and notes that one was sent again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def dead_letters(self, *, limit: int = 100) -> tuple[DeadLetter, ...]:
        """Return the newest dead letters, newest first."""
        newest = (dead_letters.c.created_at.desc(), dead_letters.c.dead_letter_id.desc())
        with transaction(self._engine) as connection:
            return tuple(
                _letter(row) for row in connection.execute(select(dead_letters).order_by(*newest).limit(limit))
            )

    def dead_letter(self, dead_letter_id: str) -> DeadLetter:
        """Return one dead letter.

        Raises:
            UnknownRecord: if there is none.
        """
        if not is_uuid(dead_letter_id):
            raise _unknown(dead_letter_id)
        query = select(dead_letters).where(dead_letters.c.dead_letter_id == dead_letter_id)
        with transaction(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise _unknown(dead_letter_id)
        return _letter(row)

    def mark_replayed(self, dead_letter_id: str, *, actor: str) -> None:
        """Record that a person sent it again.

        Raises:
            UnknownRecord: if there is none.
        """
        if not is_uuid(dead_letter_id):
            raise _unknown(dead_letter_id)
        with transaction(self._engine) as connection:
            mark = update(dead_letters).where(dead_letters.c.dead_letter_id == dead_letter_id)
            if connection.execute(mark.values(replayed_at=func.clock_timestamp())).rowcount == 0:
                raise _unknown(dead_letter_id)
            append(
                connection,
                chain=SYSTEM_CHAIN,
                actor=actor,
                action=AuditAction.message_replayed,
                subject=dead_letter_id,
                payload={},
            )


def dead_letter_row(dead_letter_id: str, message: Message, error: str) -> dict[str, Any]:
    """Return a refused message as a row of `dead_letters`."""
    headers = [[storable(name), base64.b64encode(value or b"").decode("ascii")] for name, value in message.headers]
    return {
        "dead_letter_id": dead_letter_id,
        **origin_of(message),
        "key": message.key,
        "value": message.value,
        "headers": headers,
        "error": storable(error),
    }


def origin_of(message: Message) -> Mapping[str, Any]:
    """Return where a message was read, in the names of the columns."""
    where = message.partition
    return {
        "cluster_id": where.cluster_id,
        "topic_id": where.topic_id,
        "topic": where.topic,
        "partition": where.partition,
        "offset": message.offset,
    }


def storable(text: str) -> str:
    """Return the text without what PostgreSQL cannot hold: NUL and lone surrogates, written out instead."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")


def _letter(row: Row[Any]) -> DeadLetter:
    return record_of(DeadLetter, row, partition=record_of(PartitionKey, row))


def _unknown(dead_letter_id: str) -> UnknownRecord:
    return UnknownRecord(f"expected the id of a dead letter, got {dead_letter_id!r:.80}", dead_letter_id=dead_letter_id)
