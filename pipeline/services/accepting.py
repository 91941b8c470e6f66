"""Takes corrections from people without a Kafka client, and puts them on the topic, where intake finds them.

A correction is noted before it is sent. Its id, and the time that its sender left out, are then the same however often
the sender tries again, so that a second try is a duplicate and no second correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID, uuid4, uuid5

from pipeline.domain.contract.corrections import filled_in
from pipeline.domain.contract.wire import parse_message
from pipeline.domain.edits import EditRequest, too_far_ahead
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.canonical import sha256_json
from pipeline.services.submission import encoded

_KEYS = UUID("5c9b2f3e-6d0e-4d0a-9a53-2f6b1c9b8e11")
"""Under which ids are made of idempotency keys."""


class KeyReused(InvalidInput):
    """An idempotency key that came before with another body."""


class IdReused(InvalidInput):
    """A request id that came before with another correction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a message lies in a topic."""

    topic: str
    """Name of the topic."""
    partition: int
    """Number of the partition."""
    offset: int
    """Its place among the messages of that partition."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A correction that somebody wants to be noted."""

    lineage: str
    """Name of the lineage."""
    request_id: str
    """The sender's id, or one that was made up."""
    body_digest: str
    """SHA-256 of what the sender sent; a repeated id must repeat it."""
    request: EditRequest
    """The correction as it would be if it were new."""
    is_dated: bool
    """Whether the sender said when it occurred."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noted:
    """A correction that is noted, now or before."""

    submission_id: str
    """Under which its sender may ask for it."""
    occurred_at: datetime
    """When it occurred: what its sender said, or when it came first."""
    is_taken_in: bool
    """Whether intake has it already, so that it need not be sent."""
    is_new: bool
    """Whether it came for the first time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """A correction that is on the topic."""

    submission_id: str
    """Under which its sender may ask for it."""
    request_id: str
    """The sender's id, or the one that was made up."""
    lineage: str
    """The lineage that it is for."""
    is_duplicate: bool
    """Whether it had been accepted before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A correction that cannot be accepted as it is."""

    error: InvalidInput
    """Why, for its sender."""


Result = Accepted | Refused


class SubmissionStore(Protocol):
    """Where corrections are noted."""

    def lineage_names(self) -> Sequence[str]:
        """Return the names of all lineages."""

    def note(
        self, wanted: Sequence[Wanted], *, submitted_by: str, key: str | None, call_digest: str
    ) -> Sequence[Noted | IdReused]:
        """Note corrections, or find them again; one that differs from an earlier one of its id is none.

        Raises:
            KeyReused: if the idempotency key came before with another body.
        """

    def sent(self, places: Mapping[str, Place]) -> None:
        """Note where corrections lie in the topic, by the ids of their submissions."""


class BatchPublisher(Protocol):
    """Writes to topics, and says where."""

    def publish_all(
        self, topic: str, messages: Sequence[tuple[str, bytes]], *, headers: Sequence[tuple[str, bytes]] = ()
    ) -> Sequence[Place]:
        """Send messages, each with its key, and wait until all are acknowledged.

        Raises:
            Unavailable: if the broker does not acknowledge; it may have some of them.
        """


class Acceptor:
    """The one way from HTTP to the topic."""

    def __init__(self, *, store: SubmissionStore, publisher: BatchPublisher, topic: str, max_ahead: timedelta) -> None:
        self._store = store
        self._publisher = publisher
        self._topic = topic
        self._max_ahead = max_ahead

    def accept(
        self,
        corrections: Sequence[Mapping[str, Any] | InvalidInput],
        *,
        submitted_by: str,
        key: str | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> list[Result]:
        """Put corrections on the topic; return for each what became of it.

        Args:
            corrections: objects of the wire contract that may lack fields, or why one is none.
            submitted_by: who sends them.
            key: the idempotency key of the call; what was made up the first time is the same the second.
            headers: of the messages, such as the trace that they belong to.

        Raises:
            KeyReused: if the key came before with another body.
            Unavailable: if the database or the broker does not answer. The same call again does no harm if it has a
                key, or if every correction has an id.
        """
        names = self._store.lineage_names()
        found: list[Wanted | InvalidInput] = []
        for place, correction in enumerate(corrections):
            try:
                found.append(self._wanted(correction, names, submitted_by, _made_up(submitted_by, key, place)))
            except InvalidInput as error:
                found.append(error)
        wanted = _each_id_once(found)
        call_digest = sha256_json([one.body_digest for one in wanted])
        noted = self._store.note(wanted, submitted_by=submitted_by, key=key, call_digest=call_digest) if wanted else ()
        outcomes = dict(zip(map(id, wanted), noted, strict=True))
        self._send(corrections, found, outcomes, submitted_by=submitted_by, headers=headers)
        return [_result(one, outcomes) for one in found]

    def _wanted(
        self, correction: Mapping[str, Any] | InvalidInput, names: Sequence[str], submitted_by: str, made_up: str
    ) -> Wanted:
        if isinstance(correction, InvalidInput):
            raise correction
        said_by = correction.get("submitted_by")
        if said_by not in (None, submitted_by):
            raise InvalidInput(
                f"submitted_by: expected none, or {submitted_by!r}, whose token it is; got {said_by!r:.80}"
            )
        given_lineage = correction.get("lineage")
        now = datetime.now(UTC)
        document = filled_in(
            correction,
            request_id=made_up,
            lineage=names[0] if given_lineage is None and len(names) == 1 else "",
            submitted_by=submitted_by,
            occurred_at=now,
        )
        if not document["lineage"] and given_lineage is None:
            raise InvalidInput(f"lineage: expected one of {', '.join(names) or 'none there is yet'}; got none")
        request = parse_message(encoded(document))
        if request.lineage not in names:
            raise InvalidInput(f"lineage: expected the name of a lineage, got {request.lineage!r:.120}")
        if request.occurred_at - now > self._max_ahead:
            raise InvalidInput(f"occurred_at: {too_far_ahead(request.occurred_at, now, self._max_ahead)}")
        return Wanted(
            lineage=request.lineage,
            request_id=request.request_id,
            # Two people do not share an id.
            body_digest=sha256_json(
                {
                    **correction,
                    "request_id": correction.get("request_id"),
                    "lineage": request.lineage,
                    "submitted_by": submitted_by,
                }
            ),
            request=request,
            is_dated=correction.get("occurred_at") is not None,
        )

    def _send(
        self,
        corrections: Sequence[Mapping[str, Any] | InvalidInput],
        found: Sequence[Wanted | InvalidInput],
        outcomes: Mapping[int, Noted | IdReused],
        *,
        submitted_by: str,
        headers: Sequence[tuple[str, bytes]],
    ) -> None:
        ids, messages = [], []
        for correction, one in zip(corrections, found, strict=True):
            noted = outcomes.get(id(one))
            if isinstance(one, InvalidInput) or isinstance(correction, InvalidInput) or not isinstance(noted, Noted):
                continue
            if noted.is_taken_in:
                continue
            document = filled_in(
                correction,
                request_id=one.request_id,
                lineage=one.lineage,
                submitted_by=submitted_by,
                occurred_at=noted.occurred_at,
            )
            ids.append(noted.submission_id)
            messages.append((one.lineage, encoded(document)))
        if messages:
            places = self._publisher.publish_all(self._topic, messages, headers=headers)
            self._store.sent(dict(zip(ids, places, strict=True)))


def _made_up(submitted_by: str, key: str | None, place: int) -> str:
    """Return an id for a correction without one: the same for the same place of a call with the same key."""
    return f"api-{uuid4() if key is None else uuid5(_KEYS, f'{submitted_by} {place} {key}')}"


def _each_id_once(found: list[Wanted | InvalidInput]) -> list[Wanted]:
    """Return what is to be noted; of two that share an id in one call, the second is refused in `found`."""
    seen: set[tuple[str, str]] = set()
    for place, one in enumerate(found):
        if isinstance(one, InvalidInput):
            continue
        if (one.lineage, one.request_id) in seen:
            found[place] = IdReused(f"request_id: expected each id once in a call, got {one.request_id!r:.120} again")
        seen.add((one.lineage, one.request_id))
    return [one for one in found if isinstance(one, Wanted)]


def _result(one: Wanted | InvalidInput, outcomes: Mapping[int, Noted | IdReused]) -> Result:
    if isinstance(one, InvalidInput):
        return Refused(error=one)
    noted = outcomes[id(one)]
    if isinstance(noted, IdReused):
        return Refused(error=noted)
    return Accepted(
        submission_id=noted.submission_id,
        request_id=one.request_id,
        lineage=one.lineage,
        is_duplicate=not noted.is_new,
    )
