"""One hash-chained line of history, and how a chain is checked: by itself, and by anchors outside of the database.

Whoever may rewrite the database can give every line a fitting hash. An anchor, in a model version's tag, still says
which hash a line had when that version was registered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.canonical import canonical_json, sha256_text

GENESIS_HASH = "0" * 64
SYSTEM_CHAIN = "system"
_ANCHOR = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


class AuditAction(StrEnum):
    """Everything that leaves a line in the history, as `subject:past_participle`."""

    lineage_created = "lineage:created"
    lineage_base_bound = "lineage:base_bound"
    lineage_held = "lineage:held"
    lineage_resumed = "lineage:resumed"
    edit_received = "edit:received"
    edit_claimed = "edit:claimed"
    edit_released = "edit:released"
    edit_snapshotted = "edit:snapshotted"
    edit_rejected = "edit:rejected"
    edit_superseded = "edit:superseded"
    edit_reinstated = "edit:reinstated"
    edit_reverted = "edit:reverted"
    edit_died = "edit:died"
    message_refused = "message:refused"
    message_replayed = "message:replayed"
    snapshot_created = "snapshot:created"
    snapshot_registered = "snapshot:registered"
    snapshot_unregistered = "snapshot:unregistered"
    snapshot_endorsed = "snapshot:endorsed"
    snapshot_approved = "snapshot:approved"
    snapshot_rejected = "snapshot:rejected"
    snapshot_retired = "snapshot:retired"
    snapshot_rolled_back = "snapshot:rolled_back"
    artifacts_pruned = "artifacts:pruned"
    approval_refused = "approval:refused"
    champion_moved = "champion:moved"
    champion_restored = "champion:restored"
    champion_missing = "champion:missing"
    removal_requested = "removal:requested"
    removal_failed = "removal:failed"
    rekeying_requested = "rekeying:requested"
    rekeying_failed = "rekeying:failed"
    lease_taken = "lease:taken"
    reviewer_added = "reviewer:added"
    reviewer_removed = "reviewer:removed"
    person_added = "person:added"
    person_removed = "person:removed"
    lineage_ruled = "lineage:ruled"
    lineage_policy_changed = "lineage:policy_changed"
    lineage_upkeep_changed = "lineage:upkeep_changed"
    lineage_folded = "lineage:folded"
    side_effect_given_up = "side_effect:given_up"
    side_effect_resent = "side_effect:resent"
    side_effect_closed = "side_effect:closed"


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEvent:
    """One line of a chain."""

    chain: str
    """Name of a lineage, or `system`."""
    seq: int
    """Place in the chain, from 1 without gaps."""
    at: datetime
    """Database time of the transaction, with a time zone."""
    actor: str
    """Who did it: `reviewer:NAME` who logged in, `cli:NAME (claimed)` and the like, or a process such as `intake`."""
    action: AuditAction
    """What was done."""
    subject: str
    """Id of what it was done to."""
    payload: str
    """Canonical JSON text of the details."""
    prev_hash: str
    """Hash of the line before; 64 zeros for the first."""
    hash: str
    """SHA-256 of `prev_hash` and this line's canonical body."""


def event_hash(
    *, chain: str, seq: int, at: datetime, actor: str, action: str, subject: str, payload: str, prev_hash: str
) -> str:
    """Return SHA-256 over RFC 8785 text of the line, the line before included.

    Args:
        payload: canonical JSON text; it stands in the line's own text as it is.
    """
    # The names in the order that RFC 8785 gives them, with "payload" between "chain" and "prev_hash".
    before = _text_before_payload(chain, at, actor, str(action))
    after = canonical_json({"prev_hash": prev_hash, "seq": seq, "subject": subject})
    return sha256_text(f'{before[:-1]},"payload":{payload},{after[1:]}')


@lru_cache(maxsize=8)  # the lines of one transaction are alike up to there, thousands of them after a poll
def _text_before_payload(chain: str, at: datetime, actor: str, action: str) -> str:
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    return canonical_json({"action": action, "actor": actor, "at": moment, "chain": chain})


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainBreak:
    """Where a chain stops being what was written."""

    chain: str
    """Name of the chain."""
    seq: int
    """The first sequence number that is wrong."""
    reason: str
    """What is wrong there."""


def first_break(
    events: Iterable[AuditEvent], *, after_seq: int = 0, after_hash: str = GENESIS_HASH
) -> ChainBreak | None:
    """Check lines of one chain, in order of seq; None if every line is as it was written.

    Args:
        events: the lines.
        after_seq: the line before them, 0 where they begin the chain.
        after_hash: its hash.
    """
    expected_seq, prev_hash = after_seq + 1, after_hash
    for event in events:
        if event.seq != expected_seq:
            return ChainBreak(chain=event.chain, seq=expected_seq, reason=f"missing; the next line is {event.seq}")
        if event.prev_hash != prev_hash:
            return ChainBreak(chain=event.chain, seq=event.seq, reason="does not follow the line before it")
        if event.hash != _hash_of(event):
            return ChainBreak(chain=event.chain, seq=event.seq, reason="content does not have its hash")
        expected_seq, prev_hash = event.seq + 1, event.hash
    return None


def _hash_of(event: AuditEvent) -> str | None:
    try:
        # Another text of the same value, such as one key twice, reads differently elsewhere.
        if canonical_json(json.loads(event.payload)) != event.payload:
            return None
        line = asdict(event)
        del line["hash"]
        return event_hash(**line)
    except (ValueError, RecursionError, InvalidInput):
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """One line of a chain as it was once."""

    seq: int
    """Place of the line; 0 while the chain had none."""
    hash: str
    """Hash that the line had."""

    def __str__(self) -> str:
        """Return the text that `parse_anchor` reads."""
        return f"{self.seq}:{self.hash}"


def parse_anchor(text: str | None) -> Anchor | None:
    """Return the anchor of a tag; None if there is none, or something else was written there."""
    found = _ANCHOR.fullmatch(text or "")
    return Anchor(seq=int(found[1]), hash=found[2]) if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorNote:
    """Where a chain stood at a time, as it is noted outside of the database."""

    at: str
    """When it was noted, in RFC 3339."""
    chain: str
    """Name of the chain."""
    anchor: Anchor
    """Its newest line then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchoredVersion:
    """What a model version says about the chains at the moment when it was registered."""

    version: int
    """Number of the model version."""
    lineage_anchor: Anchor | None
    """Newest line of its lineage's chain then; None if the version does not say."""
    system_anchor: Anchor | None
    """Newest line of the chain `system` then; None if the version does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredSnapshot:
    """A snapshot that the database says is a model version."""

    version: int
    """Number of the model version."""
    created_seq: int | None
    """The line that says the snapshot was made; None if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorReport:
    """What the anchors say about one chain."""

    num_agreeing: int
    """Anchors whose line has the hash that they name."""
    newest_seq: int
    """The highest line among those; what comes after it, no anchor vouches for yet."""
    contradiction: ChainBreak | None
    """The first line that an anchor contradicts, or whose anchor is gone; None if all is as it was."""
