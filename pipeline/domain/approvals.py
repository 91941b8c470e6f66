"""Who decided what about a snapshot. Knows no registry and no screen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Decision(StrEnum):
    """What can be decided about a snapshot."""

    approved = "approved"
    rejected = "rejected"
    rolled_back = "rolled_back"


class Channel(StrEnum):
    """Where a decision came in."""

    cli = "cli"
    api = "api"
    registry = "registry"


@dataclass(frozen=True, kw_only=True, slots=True)
class Approval:
    """One decision, with what the person had before their eyes."""

    lineage: str
    """Name of the lineage."""
    snapshot_id: str
    """The snapshot decided about."""
    snapshot_digest: str
    """Its digest as the person saw it; compared again in the transaction."""
    champion_seen: str | None
    """The champion when the person decided; None if there was none. Compared again in the transaction."""
    decision: Decision
    """What was decided."""
    actor: str
    """`cli:NAME`, `api:NAME`, `mlflow:NAME` or `mlflow:unknown`."""
    is_claimed: bool
    """Whether the actor's name is only what somebody wrote into a tag."""
    reason: str
    """Why, in the person's words; may be empty."""
    channel: Channel
    """Where it came in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a decision. A refusal is a value, not an error."""

    is_accepted: bool
    """Whether it was carried out."""
    reason: str
    """Why not, in one sentence; empty when accepted."""
    approval_id: str | None = None
    """The approval row, also written for a refusal."""
