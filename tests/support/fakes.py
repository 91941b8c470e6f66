"""Stores in memory that pass the contract suites of the real ones. Kept by one process, and forgotten with it."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.domain.audit import (
    GENESIS_HASH,
    SYSTEM_CHAIN,
    AuditAction,
    AuditEvent,
    ChainBreak,
    event_hash,
    first_break,
)
from pipeline.domain.contract.messages import DeadLetter, ParsedMessage, PartitionClaim, PartitionKey, Poll, PollCounts
from pipeline.domain.edits import MAX_AHEAD, Edit, EditRequest, too_far_ahead
from pipeline.domain.errors import EpochStale, InvalidInput, UnknownLineage, UnknownRecord
from pipeline.domain.formats.canonical import canonical_json
from pipeline.domain.lineages import Lineage, NewLineage
from pipeline.domain.retries import rule_of
from pipeline.services.ports import CLAIM, POSTPONED, OutboxItem


@dataclass(slots=True)
class Owed:
    """An outbox row."""

    item: OutboxItem
    next_attempt_at: datetime
    is_done: bool = False
    is_given_up: bool = False

    @property
    def is_open(self) -> bool:
        return not (self.is_done or self.is_given_up)


@dataclass(slots=True)
class MemoryDatabase:
    """What the stores share."""

    chains: dict[str, list[AuditEvent]] = field(default_factory=dict)
    outbox: dict[str, Owed] = field(default_factory=dict)
    lineages: dict[str, Lineage] = field(default_factory=dict)
    edits: dict[tuple[str, str], Edit] = field(default_factory=dict)
    letters: dict[str, DeadLetter] = field(default_factory=dict)
    partitions: dict[tuple[str, str, int], PartitionClaim] = field(default_factory=dict)

    def append(self, chain: str, actor: str, action: AuditAction, subject: str, payload: Mapping[str, Any]) -> None:
        """Append one line to a chain."""
        lines = self.chains.setdefault(chain, [])
        body: dict[str, Any] = {
            "chain": chain,
            "seq": len(lines) + 1,
            "at": datetime.now(UTC),
            "actor": actor,
            "action": action,
            "subject": subject,
            "payload": canonical_json(dict(payload)),
            "prev_hash": lines[-1].hash if lines else GENESIS_HASH,
        }
        lines.append(AuditEvent(**body, hash=event_hash(**body)))

    def owe(self, kind: str, dedup_key: str, payload: Mapping[str, Any]) -> None:
        """Owe a side effect, once for each key."""
        if any(owed.item.dedup_key == dedup_key for owed in self.outbox.values()):
            return
        item = OutboxItem(outbox_id=new_id(), kind=kind, dedup_key=dedup_key, payload=payload, attempts=0, claim="")
        self.outbox[item.outbox_id] = Owed(item=item, next_attempt_at=datetime.now(UTC))


class MemoryAuditStore:
    """Reads chains of history as `SqlAuditStore` does."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    def chains(self) -> tuple[str, ...]:
        return tuple(sorted({SYSTEM_CHAIN, *self._database.chains}))

    def events(self, chain: str, *, after_seq: int = 0, limit: int = 1000) -> tuple[AuditEvent, ...]:
        lines = self._database.chains.get(chain, [])
        return tuple(line for line in lines if line.seq > after_seq)[:limit]

    def verify(self, chain: str) -> ChainBreak | None:
        return first_break(self._database.chains.get(chain, []))

    def head(self, chain: str) -> tuple[int, str]:
        lines = self._database.chains.get(chain)
        return (lines[-1].seq, lines[-1].hash) if lines else (0, GENESIS_HASH)


class MemoryOutboxStore:
    """An `OutboxStore`."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    def due(self, kind: str | None = None, *, limit: int = 100) -> tuple[OutboxItem, ...]:
        now, claim = datetime.now(UTC), new_id()
        owed = (one for one in self._database.outbox.values() if one.is_open and kind in (None, one.item.kind))
        found = [one for one in owed if one.next_attempt_at <= now][:limit]
        for one in found:
            one.next_attempt_at, one.item = now + CLAIM, replace(one.item, claim=claim)
        return tuple(one.item for one in found)

    def renew(self, items: Sequence[OutboxItem]) -> frozenset[str]:
        ours = self._ours(items)
        for owed in ours:
            owed.next_attempt_at = datetime.now(UTC) + CLAIM
        return frozenset(owed.item.outbox_id for owed in ours)

    def release(self, items: Sequence[OutboxItem]) -> None:
        for owed in self._ours(items):
            owed.next_attempt_at, owed.item = datetime.now(UTC), replace(owed.item, claim="")

    def done(self, outbox_ids: Sequence[str]) -> None:
        for owed in [self._owed(outbox_id) for outbox_id in outbox_ids]:
            owed.is_done = True

    def postponed(self, item: OutboxItem, *, error: str, wait: timedelta = POSTPONED) -> None:
        for owed in self._ours([item]):
            owed.next_attempt_at, owed.item = datetime.now(UTC) + wait, replace(owed.item, claim="")

    def failed(self, item: OutboxItem, *, error: str) -> bool:
        for owed in self._ours([item]):
            rule = rule_of(item.kind)
            owed.next_attempt_at = datetime.now(UTC) + rule.wait(item.attempts)
            owed.item = replace(owed.item, attempts=item.attempts + 1, claim="")
            owed.is_given_up = rule.is_last(item.attempts)
            return owed.is_given_up
        return False

    def _ours(self, items: Sequence[OutboxItem]) -> list[Owed]:
        found = [self._owed(item.outbox_id) for item in items]
        return [owed for owed, item in zip(found, items, strict=True) if owed.is_open and owed.item.claim == item.claim]

    def _owed(self, outbox_id: str) -> Owed:
        if outbox_id not in self._database.outbox:
            raise UnknownRecord(f"expected the id of an owed side effect, got {outbox_id}")
        return self._database.outbox[outbox_id]


class MemoryLineageStore:
    """A `LineageStore`."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    def create(self, new: NewLineage, *, actor: str) -> Lineage:
        if new.name in self._database.lineages or new.name == SYSTEM_CHAIN or set(new.name) & set("/: \t\n"):
            raise InvalidInput(f"expected a free and usable name for a lineage, got {new.name!r}")
        made = Lineage(
            lineage_id=new_id(),
            settings=new,
            editor_digest=canonical_json(list(new.editor.inner_params)),
            head_id=None,
            head_seq=0,
            head_digest=new.base.digest,
            champion_id=None,
            champion_seq=0,
            hold=None,
            created_at=datetime.now(UTC),
        )
        self._database.lineages[new.name] = made
        self._database.append(new.name, actor, AuditAction.lineage_created, made.lineage_id, {"name": new.name})
        return made

    def lineage(self, name: str) -> Lineage:
        if name not in self._database.lineages:
            raise UnknownLineage(f"expected the name of a lineage, got {name!r}")
        return self._database.lineages[name]

    def counts(self, name: str) -> Mapping[str, int]:
        mine = [lineage for lineage, _ in self._database.edits if lineage == self.lineage(name).settings.name]
        return {"received": len(mine)} if mine else {}

    def lineages(self) -> tuple[Lineage, ...]:
        return tuple(self.lineage(name) for name in sorted(self._database.lineages))

    def hold(self, name: str, *, reason: str, actor: str) -> None:
        found = self.lineage(name)
        if found.hold is None:
            self._database.lineages[name] = replace(found, hold=reason)
            self._database.append(name, actor, AuditAction.lineage_held, found.lineage_id, {"reason": reason})

    def resume(self, name: str, *, actor: str) -> None:
        found = self.lineage(name)
        if found.hold is not None:
            self._database.lineages[name] = replace(found, hold=None)
            self._database.append(name, actor, AuditAction.lineage_resumed, found.lineage_id, {"was": found.hold})
            payload = {"lineage": name, "base_digest": found.settings.base.digest}
            self._database.owe("doorbell", f"doorbell:{name}:{len(self._database.chains[name])}", payload)


class MemoryIntakeStore:
    """An `IntakeStore` and a `DeadLetterStore`."""

    def __init__(self, database: MemoryDatabase, *, max_ahead: timedelta = MAX_AHEAD) -> None:
        self._database, self._max_ahead = database, max_ahead

    def take_partition(self, partition: PartitionKey) -> PartitionClaim:
        before = self._database.partitions.get(_key(partition))
        epoch, next_offset = (before.epoch + 1, before.next_offset) if before else (1, 0)
        claim = PartitionClaim(partition=partition, epoch=epoch, next_offset=next_offset)
        self._database.partitions[_key(partition)] = claim
        return claim

    def record(self, polls: Sequence[Poll]) -> PollCounts:
        for poll in polls:
            recorded = self._database.partitions.get(_key(poll.claim.partition))
            if recorded is None or recorded.epoch != poll.claim.epoch:
                raise EpochStale(f"expected to hold {poll.claim.partition} at epoch {poll.claim.epoch}")
        counts: Counter[str] = Counter()
        for poll in polls:
            recorded = self._database.partitions[_key(poll.claim.partition)]
            fresh = [one for one in poll.messages if one.message.offset >= recorded.next_offset]
            counts.update(self._record_one(one) for one in fresh)
            next_offset = max(poll.next_offset, recorded.next_offset)
            self._database.partitions[_key(poll.claim.partition)] = replace(recorded, next_offset=next_offset)
        return PollCounts(**counts)

    def dead_letters(self, *, limit: int = 100) -> tuple[DeadLetter, ...]:
        return tuple(reversed(self._database.letters.values()))[:limit]

    def dead_letter(self, dead_letter_id: str) -> DeadLetter:
        if dead_letter_id not in self._database.letters:
            raise UnknownRecord(f"expected the id of a dead letter, got {dead_letter_id}")
        return self._database.letters[dead_letter_id]

    def mark_replayed(self, dead_letter_id: str, *, actor: str) -> None:
        letter = self.dead_letter(dead_letter_id)
        self._database.letters[dead_letter_id] = replace(letter, replayed_at=datetime.now(UTC))
        self._database.append(SYSTEM_CHAIN, actor, AuditAction.message_replayed, dead_letter_id, {})

    def _record_one(self, one: ParsedMessage) -> str:
        request = one.request
        if request is None or request.lineage not in self._database.lineages:
            unknown = f"expected the name of a lineage, got {request.lineage!r}" if request else ""
            return self._refuse(one, unknown or one.refusal or "")
        known = self._database.edits.get((request.lineage, request.request_id))
        now = datetime.now(UTC)
        if known is None and request.occurred_at - now > self._max_ahead:
            return self._refuse(one, too_far_ahead(request.occurred_at, now, self._max_ahead))
        if known is None:
            return self._receive(one, request)
        if known.request.payload_digest == request.payload_digest:
            return "duplicates"
        return self._refuse(one, f"expected a new request_id, got {request.request_id!r} with another payload")

    def _receive(self, one: ParsedMessage, request: EditRequest) -> str:
        edit = Edit(edit_id=new_id(), request=request)
        self._database.edits[request.lineage, request.request_id] = edit
        payload = {"request_id": request.request_id}
        self._database.append(request.lineage, "intake", AuditAction.edit_received, edit.edit_id, payload)
        base_digest = self._database.lineages[request.lineage].settings.base.digest
        ring = {"lineage": request.lineage, "base_digest": base_digest}
        self._database.owe("doorbell", f"doorbell:{request.lineage}:{one.message.offset}", ring)
        return "received"

    def _refuse(self, one: ParsedMessage, reason: str) -> str:
        letter = DeadLetter(
            dead_letter_id=new_id(),
            partition=one.message.partition,
            offset=one.message.offset,
            key=one.message.key,
            value=one.message.value,
            error=reason,
            created_at=datetime.now(UTC),
            replayed_at=None,
        )
        self._database.letters[letter.dead_letter_id] = letter
        payload = {"error": reason}
        self._database.append(SYSTEM_CHAIN, "intake", AuditAction.message_refused, letter.dead_letter_id, payload)
        owed = {"dead_letter_id": letter.dead_letter_id}
        self._database.owe("dead_letter", f"dead_letter:{letter.dead_letter_id}", owed)
        return "refused"


def new_id() -> str:
    """An id that no other record has."""
    return str(uuid.uuid4())


def _key(partition: PartitionKey) -> tuple[str, str, int]:
    return (partition.cluster_id, partition.topic_id, partition.partition)
