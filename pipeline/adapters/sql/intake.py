"""Polls recorded in PostgreSQL, each in one transaction: edits, duplicates, dead letters and next offsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, Connection, Engine, Row, Text, any_, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from pipeline.adapters.sql.audit import AuditLine, append_all, lock_chains
from pipeline.adapters.sql.database.bulk import copy_rows
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.tables import dead_letters, edit_requests, ingest_offsets, lineages
from pipeline.adapters.sql.dead_letters import SqlDeadLetterStore, dead_letter_row, origin_of
from pipeline.adapters.sql.outbox import Debt, owe_all
from pipeline.domain.audit import SYSTEM_CHAIN, AuditAction
from pipeline.domain.contract.messages import Message, ParsedMessage, PartitionClaim, PartitionKey, Poll, PollCounts
from pipeline.domain.edits import MAX_AHEAD, EditRequest, too_far_ahead
from pipeline.domain.errors import EpochStale
from pipeline.domain.formats.canonical import sha256_bytes

ACTOR = "intake"
LEFT_OUT: Mapping[str, Any] = {"question": None, "messages": [], "answer": None, "aliases": []}
"""What a request has in the columns that its JSON leaves out: one statement writes rows of the same columns."""


class SqlIntakeStore(SqlDeadLetterStore):
    """Records polls under the epochs of their partitions; what it refuses is read as dead letters.

    Args:
        engine: the database.
        max_ahead: how far ahead of the database's clock a correction may be dated. One from a producer whose clock is
            wrong would win over every later correction of its fact until then.
    """

    def __init__(self, engine: Engine, *, max_ahead: timedelta = MAX_AHEAD) -> None:
        super().__init__(engine)
        self._max_ahead = max_ahead

    def take_partition(self, partition: PartitionKey) -> PartitionClaim:
        """Raise the partition's epoch and say what comes next (0 for a new incarnation)."""
        fresh = upsert(ingest_offsets).values(**_key(partition), topic=partition.topic, epoch=1, next_offset=0)
        changes = {
            "epoch": ingest_offsets.c.epoch + 1,
            "topic": partition.topic,
            "updated_at": func.clock_timestamp(),
        }
        take = fresh.on_conflict_do_update(constraint=ingest_offsets.primary_key, set_=changes)
        with transaction(self._engine) as connection:
            columns = (ingest_offsets.c.epoch, ingest_offsets.c.next_offset)
            epoch, next_offset = connection.execute(take.returning(*columns)).one()
        return PartitionClaim(partition=partition, epoch=epoch, next_offset=next_offset)

    def record(self, polls: Sequence[Poll]) -> PollCounts:
        """Record requests, dead letters, next offsets, audit and outbox rows in one transaction.

        Messages below a partition's recorded offset are skipped, so the same poll twice is the same as once.

        Raises:
            EpochStale: if any partition was taken by somebody else; nothing was written.
        """
        with transaction(self._engine) as connection:
            recorded = _lock_offsets(connection, polls)
            fresh = [one for poll in polls for one in _fresh(poll, recorded)]
            sorting = _sort(connection, fresh, self._max_ahead)
            _write(connection, sorting)
            for poll in polls:
                _advance(connection, poll, recorded, sorting)
        return PollCounts(
            received=sorting.count("received"),
            duplicates=sorting.count("duplicates"),
            refused=sorting.count("refused"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _LineageRef:
    lineage_id: str
    base_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _New:
    """A request that is to become an edit."""

    message: Message
    request: EditRequest
    lineage: _LineageRef
    digest: str
    conflict_key: str
    traceparent: str | None


@dataclass(kw_only=True, slots=True)
class _Sorting:
    """What becomes of the messages of one transaction; filled in order of arrival."""

    now: datetime
    max_ahead: timedelta
    new: list[_New] = field(default_factory=list)
    refused: list[tuple[Message, str]] = field(default_factory=list)
    tallies: Counter[tuple[PartitionKey, str]] = field(default_factory=Counter)

    def tally(self, message: Message, outcome: str) -> None:
        """Count a message."""
        self.tallies[message.partition, outcome] += 1

    def count(self, outcome: str) -> int:
        """Return how many messages came out so, over all partitions."""
        return sum(count for (_, found), count in self.tallies.items() if found == outcome)


def _key(partition: PartitionKey) -> dict[str, Any]:
    return {
        "cluster_id": partition.cluster_id,
        "topic_id": partition.topic_id,
        "partition": partition.partition,
    }


def _is_row_of(partition: PartitionKey) -> Any:
    columns = ingest_offsets.c
    return (
        (columns.cluster_id == partition.cluster_id)
        & (columns.topic_id == partition.topic_id)
        & (columns.partition == partition.partition)
    )


def _lock_offsets(connection: Connection, polls: Sequence[Poll]) -> dict[PartitionKey, int]:
    """Lock the partitions' rows in order of their keys, check their epochs, and return the next offset of each."""
    recorded = {}
    for poll in sorted(polls, key=lambda poll: tuple(_key(poll.claim.partition).values())):
        partition = poll.claim.partition
        query = select(ingest_offsets).where(_is_row_of(partition)).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None or row.epoch != poll.claim.epoch:
            raise _stale(poll.claim, row)
        recorded[partition] = row.next_offset
    return recorded


def _fresh(poll: Poll, recorded: Mapping[PartitionKey, int]) -> Iterable[ParsedMessage]:
    return (one for one in poll.messages if one.message.offset >= recorded[poll.claim.partition])


def _sort(connection: Connection, messages: Sequence[ParsedMessage], max_ahead: timedelta) -> _Sorting:
    """Decide what becomes of each message, in order.

    The chains are locked first: nobody else records requests of these lineages until this transaction ends.
    """
    names = {one.request.lineage for one in messages if one.request is not None}
    known = _lineages(connection, names)
    if messages:
        lock_chains(connection, {*known, SYSTEM_CHAIN})
    digests = _recorded_digests(connection, messages, known)
    sorting = _Sorting(now=connection.execute(select(func.clock_timestamp())).scalar_one(), max_ahead=max_ahead)
    for one in messages:
        _sort_one(one, known, digests, sorting)
    return sorting


def _sort_one(
    one: ParsedMessage,
    known: Mapping[str, _LineageRef],
    digests: dict[tuple[str, str], str],
    sorting: _Sorting,
) -> None:
    request, lineage = one.request, known.get(one.request.lineage) if one.request else None
    if request is None or lineage is None:
        unknown = f"expected the name of a lineage, got {request.lineage!r:.120}" if request else None
        _refuse(one.message, unknown or one.refusal or "expected a correction, got none", sorting)
        return
    before = digests.get((lineage.lineage_id, request.request_id))
    digest = request.payload_digest
    if before is None and request.occurred_at - sorting.now > sorting.max_ahead:
        _refuse(one.message, too_far_ahead(request.occurred_at, sorting.now, sorting.max_ahead), sorting)
    elif before is None:
        new = _New(
            message=one.message,
            request=request,
            lineage=lineage,
            digest=digest,
            conflict_key=request.conflict_key,
            traceparent=one.traceparent,
        )
        sorting.new.append(new)
        sorting.tally(one.message, "received")
        digests[lineage.lineage_id, request.request_id] = digest
    elif before == digest:
        sorting.tally(one.message, "duplicates")
    else:
        reason = f"expected a new request_id or the same payload, got {request.request_id!r} with another payload"
        _refuse(one.message, reason, sorting)


def _refuse(message: Message, reason: str, sorting: _Sorting) -> None:
    sorting.refused.append((message, reason))
    sorting.tally(message, "refused")


def _lineages(connection: Connection, names: Iterable[str]) -> dict[str, _LineageRef]:
    columns = (lineages.c.name, lineages.c.lineage_id, lineages.c.base_digest)
    rows = connection.execute(select(*columns).where(lineages.c.name.in_(sorted(names))))
    return {row.name: _LineageRef(lineage_id=row.lineage_id, base_digest=row.base_digest) for row in rows}


def _recorded_digests(
    connection: Connection, messages: Sequence[ParsedMessage], known: Mapping[str, _LineageRef]
) -> dict[tuple[str, str], str]:
    columns = edit_requests.c
    digests = {}
    for name, lineage in known.items():
        ids = {one.request.request_id for one in messages if one.request and one.request.lineage == name}
        query = select(columns.request_id, columns.payload_digest).where(
            columns.lineage_id == lineage.lineage_id, columns.request_id == any_(literal(sorted(ids), ARRAY(Text)))
        )
        digests.update({(lineage.lineage_id, row.request_id): row.payload_digest for row in connection.execute(query)})
    return digests


def _write(connection: Connection, sorting: _Sorting) -> None:
    """Write rows, audit lines and debts of everything that is new: a few statements, however many messages."""
    ids = _new_ids(connection, len(sorting.new) + len(sorting.refused))
    edits = list(zip(ids, sorting.new, strict=False))
    letters = list(zip(ids[len(edits) :], sorting.refused, strict=True))
    copy_rows(connection, edit_requests, [_edit_row(edit_id, new) for edit_id, new in edits])
    copy_rows(connection, dead_letters, [dead_letter_row(letter_id, *why) for letter_id, why in letters])
    lines = [_received(edit_id, new) for edit_id, new in edits]
    append_all(connection, [*lines, *(_refused(letter_id, *why) for letter_id, why in letters)])
    owe_all(connection, [*_doorbells(sorting.new), *(_announcement(letter_id) for letter_id, _ in letters)])


def _new_ids(connection: Connection, num: int) -> list[str]:
    made = text("SELECT uuidv7()::text FROM generate_series(1, :num)")
    return list(connection.execute(made, {"num": num}).scalars()) if num else []


def _edit_row(edit_id: str, new: _New) -> dict[str, Any]:
    said = new.request.as_json()
    del said["lineage"]
    return {
        **LEFT_OUT,
        **said,
        **origin_of(new.message),
        "occurred_at": new.request.occurred_at,
        "edit_id": edit_id,
        "lineage_id": new.lineage.lineage_id,
        "payload_digest": new.digest,
        "conflict_key": new.conflict_key,
        "traceparent": new.traceparent,
    }


def _received(edit_id: str, new: _New) -> AuditLine:
    payload = {
        "request_id": new.request.request_id,
        "to": "received",
        "payload_digest": new.digest,
        "origin": dict(origin_of(new.message)),
    }
    return AuditLine(
        chain=new.request.lineage, actor=ACTOR, action=AuditAction.edit_received, subject=edit_id, payload=payload
    )


def _refused(letter_id: str, message: Message, reason: str) -> AuditLine:
    row = dead_letter_row(letter_id, message, reason)
    value_digest = sha256_bytes(message.value) if message.value is not None else None
    payload = {"error": row["error"], "value_digest": value_digest, "origin": dict(origin_of(message))}
    return AuditLine(
        chain=SYSTEM_CHAIN, actor=ACTOR, action=AuditAction.message_refused, subject=letter_id, payload=payload
    )


def _doorbells(new: Sequence[_New]) -> list[Debt]:
    """Return one doorbell a lineage, named for the last message that brought it work."""
    last = {one.request.lineage: one for one in new}
    return [
        Debt(
            kind="doorbell",
            dedup_key=":".join(["doorbell", name, *(str(part) for part in origin_of(one.message).values())]),
            payload={"lineage": name, "base_digest": one.lineage.base_digest},
        )
        for name, one in sorted(last.items())
    ]


def _announcement(letter_id: str) -> Debt:
    return Debt(kind="dead_letter", dedup_key=f"dead_letter:{letter_id}", payload={"dead_letter_id": letter_id})


def _advance(connection: Connection, poll: Poll, recorded: Mapping[PartitionKey, int], sorting: _Sorting) -> None:
    partition = poll.claim.partition
    columns = ingest_offsets.c
    change = update(ingest_offsets).where(_is_row_of(partition))
    connection.execute(
        change.values(
            next_offset=max(poll.next_offset, recorded[partition]),
            num_received=columns.num_received + sorting.tallies[partition, "received"],
            num_duplicates=columns.num_duplicates + sorting.tallies[partition, "duplicates"],
            num_refused=columns.num_refused + sorting.tallies[partition, "refused"],
            updated_at=func.clock_timestamp(),
        )
    )


def _stale(claim: PartitionClaim, row: Row[Any] | None) -> EpochStale:
    where = f"partition {claim.partition.partition} of {claim.partition.topic!r}"
    got = "nobody has taken it" if row is None else f"it is at epoch {row.epoch}"
    return EpochStale(f"expected to hold {where} at epoch {claim.epoch}, but {got}", topic=claim.partition.topic)
