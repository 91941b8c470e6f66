"""What a log holds and nobody can read: now, later, or by starting again."""

from __future__ import annotations

from collections.abc import Iterable
from gzip import BadGzipFile

from kafka.consumer.fetcher import RecordTooLargeError
from kafka.errors import (
    CorruptRecordError,
    InvalidRecordError,
    KafkaError,
    KafkaProtocolError,
    UnsupportedCodecError,
    UnsupportedCompressionTypeError,
    UnsupportedForMessageFormatError,
)

from pipeline.domain.contract.messages import PartitionClaim
from pipeline.domain.errors import Unreadable

NAMED_PLACES = 3
"""So many of the places where it may lie are named."""

_UNREADABLE = (
    CorruptRecordError,
    InvalidRecordError,
    KafkaProtocolError,
    RecordTooLargeError,
    UnsupportedCodecError,
    UnsupportedCompressionTypeError,
    UnsupportedForMessageFormatError,
)


def is_unreadable(error: Exception) -> bool:
    """Return whether what a poll raised is about the bytes that came, and not about the way to the broker.

    The library's own errors say so by their kind. Codecs raise whatever they like (`RuntimeError`, `EOFError`, kinds of
    their own), and nothing else in a poll does.
    """
    if isinstance(error, KafkaError):
        return isinstance(error, _UNREADABLE) and not error.retriable
    return isinstance(error, BadGzipFile) or not isinstance(error, OSError)


def unreadable(error: Exception, claims: Iterable[PartitionClaim]) -> Unreadable:
    """Return the error that says where the log cannot be read, and why.

    Args:
        error: what the poll raised.
        claims: the partitions that were read, with the next offset of each: it is in one of them.
    """
    read = [f"offset {claim.next_offset} of {claim.partition.topic}[{claim.partition.partition}]" for claim in claims]
    more = len(read) - NAMED_PLACES
    where = " or ".join(read[:NAMED_PLACES]) + (f" or in {more} more partitions" if more > 0 else "")
    said = " ".join(str(error).split())[:300]
    kind = type(error).__name__
    why = said if said.startswith(kind) else f"{kind}: {said}" if said else kind
    return Unreadable(f"expected messages that can be read from {where} on, got some that cannot: {why}")
