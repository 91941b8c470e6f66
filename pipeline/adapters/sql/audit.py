"""The hash-chained history in PostgreSQL."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection, Engine, Row, func, select, text, union, update
from sqlalchemy.dialects.postgresql import insert as upsert

from pipeline.adapters.sql.database.bulk import copy_rows
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.rows import record_of
from pipeline.adapters.sql.database.tables import audit_events, chain_heads, lineages
from pipeline.domain.audit import (
    GENESIS_HASH,
    SYSTEM_CHAIN,
    AuditAction,
    AuditEvent,
    ChainBreak,
    RegisteredSnapshot,
    event_hash,
    first_break,
)
from pipeline.domain.formats.canonical import canonical_json

PAGE = 1000

REGISTERED = """
    SELECT s.registry_version::bigint AS version, (
        SELECT min(a.seq) FROM audit_events a
        WHERE a.subject = s.snapshot_id::text AND a.chain = l.name AND a.action = 'snapshot:created'
    ) AS created_seq
    FROM snapshots s JOIN lineages l USING (lineage_id)
    WHERE l.name = :chain AND s.registry_version ~ '^[0-9]{1,18}$'
    ORDER BY 1
"""

_KNOWN = frozenset(AuditAction)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditLine:
    """A line that is to be appended to a chain."""

    chain: str
    """Name of a lineage, or `system`."""
    actor: str
    """Who did it."""
    action: AuditAction
    """What was done."""
    subject: str
    """Id of what it was done to."""
    payload: Mapping[str, Any]
    """The details; anything with a canonical JSON form."""


def append(
    connection: Connection, *, chain: str, actor: str, action: AuditAction, subject: str, payload: Mapping[str, Any]
) -> AuditEvent:
    """Append one line. Its chain stays locked until the transaction ends.

    A transaction that writes to several chains uses `append_all`, or `lock_chains` before its first line.
    """
    line = AuditLine(chain=chain, actor=actor, action=action, subject=subject, payload=payload)
    return append_all(connection, [line])[0]


def append_all(connection: Connection, lines: Sequence[AuditLine]) -> tuple[AuditEvent, ...]:
    """Append lines in the order given, in a few statements however many they are; locks their chains in order."""
    heads = lock_chains(connection, {line.chain for line in lines})
    if not lines:
        return ()
    at = _clock(connection)
    events = []
    for line in lines:
        seq, prev_hash = heads[line.chain]
        event = _event(line, seq=seq + 1, at=at, prev_hash=prev_hash)
        heads[line.chain] = (event.seq, event.hash)
        events.append(event)
    copy_rows(connection, audit_events, [_row(event) for event in events])
    for chain, (seq, digest) in heads.items():
        connection.execute(update(chain_heads).where(chain_heads.c.chain == chain).values(seq=seq, hash=digest))
    return tuple(events)


def lock_chains(connection: Connection, chains: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Lock the heads of chains in order of their names, so that two transactions never wait for each other.

    Returns:
        (seq, hash) of the newest line of each; (0, 64 zeros) for a chain that begins now.
    """
    heads: dict[str, tuple[int, str]] = {}
    for chain in sorted(set(chains)):
        head = _locked_head(connection, chain)
        if head is None:
            row = {"chain": chain, "seq": 0, "hash": GENESIS_HASH}
            connection.execute(upsert(chain_heads).values(row).on_conflict_do_nothing())
            head = _locked_head(connection, chain)
        heads[chain] = head or (0, GENESIS_HASH)
    return heads


class SqlAuditStore:
    """Reads the chains, and checks them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def chains(self) -> tuple[str, ...]:
        """Return the names of all chains, and of every lineage even if its whole chain was taken away."""
        names = union(select(chain_heads.c.chain), select(audit_events.c.chain), select(lineages.c.name))
        with transaction(self._engine) as connection:
            return tuple(sorted({SYSTEM_CHAIN, *connection.execute(names).scalars()}))

    def events(self, chain: str, *, after_seq: int = 0, limit: int = 1000) -> tuple[AuditEvent, ...]:
        """Return lines of a chain in order of their seq."""
        with transaction(self._engine) as connection:
            return tuple(_read(row) for row in _page(connection, chain, after_seq, limit))

    def head(self, chain: str) -> tuple[int, str]:
        """(seq, hash) of the newest line; (0, 64 zeros) of an empty chain."""
        with transaction(self._engine) as connection:
            return _head(connection, chain) or (0, GENESIS_HASH)

    def hashes(self, chain: str, seqs: Sequence[int]) -> dict[int, str]:
        """Return the hashes of those lines of a chain that exist."""
        query = select(audit_events.c.seq, audit_events.c.hash).where(
            audit_events.c.chain == chain, audit_events.c.seq.in_(seqs)
        )
        with transaction(self._engine) as connection:
            return {row.seq: row.hash for row in connection.execute(query)}

    def registered(self, chain: str) -> Generator[RegisteredSnapshot]:
        """Yield the snapshots of a lineage that are model versions, by version number, a page in memory at a time."""
        query = text(REGISTERED).execution_options(yield_per=PAGE)
        # Closed also where the reader stops early: the rows are in a cursor of the server.
        with transaction(self._engine) as connection, closing(connection.execute(query, {"chain": chain})) as rows:
            for row in rows:
                yield record_of(RegisteredSnapshot, row)

    def verify(self, chain: str) -> ChainBreak | None:
        """Check every line of a chain, that it ends where its head says, and that a lineage has one at all."""
        with transaction(self._engine) as connection:
            # One view of the chain and its head, whatever is appended meanwhile.
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            reader = _ChainReader(connection, chain)
            try:
                found = first_break(reader)
            except _UnknownAction as unknown:
                found = unknown.found
            return found or _tail_break(connection, chain, reader.last)


class _UnknownAction(Exception):
    def __init__(self, found: ChainBreak) -> None:
        self.found = found


class _ChainReader:
    """The lines of a chain, a page at a time; remembers the last one."""

    def __init__(self, connection: Connection, chain: str) -> None:
        self._connection = connection
        self._chain = chain
        self.last: AuditEvent | None = None

    def __iter__(self) -> Iterator[AuditEvent]:
        after: int | None = None
        while rows := _page(self._connection, self._chain, after, PAGE):
            for row in rows:
                self.last = _read(row)
                yield self.last
                # The line was found consistent: somebody who could write hashes made it.
                if row.action not in _KNOWN:
                    reason = f"expected a known action, got {row.action!r:.60}"
                    raise _UnknownAction(ChainBreak(chain=self._chain, seq=row.seq, reason=reason))
            after = rows[-1].seq


def _tail_break(connection: Connection, chain: str, last: AuditEvent | None) -> ChainBreak | None:
    seq, digest = (last.seq, last.hash) if last else (0, GENESIS_HASH)
    head = _head(connection, chain)
    if head is None and last is None:
        is_lineage = connection.scalar(select(func.count()).where(lineages.c.name == chain))
        reason = "missing; the lineage exists and has no history"
        return ChainBreak(chain=chain, seq=1, reason=reason) if is_lineage else None
    if head is None:
        return ChainBreak(chain=chain, seq=seq, reason="the chain has lines and no recorded head")
    if head[0] > seq:
        return ChainBreak(chain=chain, seq=seq + 1, reason=f"missing; the recorded head is line {head[0]}")
    if head[0] < seq:
        return ChainBreak(chain=chain, seq=head[0] + 1, reason="lies above the recorded head")
    if head[1] != digest:
        return ChainBreak(chain=chain, seq=seq, reason="has another hash than the recorded head")
    return None


def _page(connection: Connection, chain: str, after_seq: int | None, limit: int) -> Sequence[Row[Any]]:
    query = select(audit_events).where(audit_events.c.chain == chain).order_by(audit_events.c.seq).limit(limit)
    if after_seq is not None:
        query = query.where(audit_events.c.seq > after_seq)
    return connection.execute(query).all()


def _head(connection: Connection, chain: str) -> tuple[int, str] | None:
    row = connection.execute(select(chain_heads).where(chain_heads.c.chain == chain)).one_or_none()
    return (row.seq, row.hash) if row else None


def _locked_head(connection: Connection, chain: str) -> tuple[int, str] | None:
    query = select(chain_heads).where(chain_heads.c.chain == chain).with_for_update()
    row = connection.execute(query).one_or_none()
    return (row.seq, row.hash) if row else None


def _clock(connection: Connection) -> datetime:
    """Read after the locks are held, so that times do not fall along a chain."""
    return cast(datetime, connection.execute(select(func.clock_timestamp())).scalar_one())


def _event(line: AuditLine, *, seq: int, at: datetime, prev_hash: str) -> AuditEvent:
    body: dict[str, Any] = {
        "chain": line.chain,
        "seq": seq,
        "at": at,
        "actor": line.actor,
        "action": line.action,
        "subject": line.subject,
        "payload": canonical_json(dict(line.payload)),
        "prev_hash": prev_hash,
    }
    return AuditEvent(**body, hash=event_hash(**body))


def _row(event: AuditEvent) -> dict[str, object]:
    # Not `asdict`, which copies every value deeply.
    return {name: getattr(event, name) for name in AuditEvent.__dataclass_fields__} | {"action": event.action.value}


def _read(row: Row[Any]) -> AuditEvent:
    # An unknown action is kept as it stands: a reader of a damaged history must see it, not an exception.
    action = AuditAction(row.action) if row.action in _KNOWN else cast(AuditAction, row.action)
    return record_of(AuditEvent, row, action=action)
