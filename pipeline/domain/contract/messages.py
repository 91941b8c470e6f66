"""What a broker hands over, before anybody knows whether it is an edit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pipeline.domain.edits import EditRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionKey:
    """A partition of one incarnation of a topic: a wiped broker starts another."""

    cluster_id: str
    """The broker's cluster id, or the embedded stack's incarnation id."""
    topic_id: str
    """The topic's id, or its name where the broker gives none."""
    topic: str
    """The topic's name."""
    partition: int
    """Number of the partition."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One record of a partition, undecoded."""

    partition: PartitionKey
    """Where it was read."""
    offset: int
    """Its offset there."""
    key: bytes | None
    """Raw key of the message."""
    value: bytes | None
    """Raw value; None is a tombstone."""
    headers: tuple[tuple[str, bytes], ...] = ()
    """Raw headers of the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionClaim:
    """The right to record what a partition holds, until somebody takes a higher epoch."""

    partition: PartitionKey
    """The partition it was taken for."""
    epoch: int
    """Raised by every take; a write with an older one fails."""
    next_offset: int
    """The first offset that is not recorded yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedMessage:
    """A message and what became of it: a request, or the reason why it can never be one."""

    message: Message
    """The raw message."""
    request: EditRequest | None
    """The correction, if it is one."""
    refusal: str | None
    """Why it is none."""
    traceparent: str | None = None
    """Where the trace of the request goes on, as W3C writes it; None if there is no trace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Poll:
    """What one poll of one partition brought, to be recorded in one transaction with others."""

    claim: PartitionClaim
    """Under which epoch."""
    messages: tuple[ParsedMessage, ...]
    """In order of offset, without gaps that matter."""
    next_offset: int
    """The offset after the last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PollCounts:
    """What recording did with the messages of a poll."""

    received: int = 0
    """New edit requests."""
    duplicates: int = 0
    """Same id, same payload: ignored."""
    refused: int = 0
    """Messages that became dead letters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A message that can never be an edit, as recorded."""

    dead_letter_id: str
    """UUID of the dead letter."""
    partition: PartitionKey
    """Where it was read."""
    offset: int
    """Its offset there."""
    key: bytes | None
    """Raw key of the message."""
    value: bytes | None
    """Raw value, whole; None for a tombstone, and once it was pruned."""
    error: str
    """The reason, for its producer."""
    created_at: datetime
    """Database time of its refusal."""
    replayed_at: datetime | None
    """When a person sent it again; None if never."""
    pruned_at: datetime | None = None
    """When its bytes were taken away; None while they are there."""
