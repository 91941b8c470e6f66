"""Who decided what about a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pipeline.domain.lifecycle import SnapshotStatus


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a decision is checked against, read under lock."""

    digest: str
    """The snapshot's recorded digest."""
    status: SnapshotStatus
    """Where the snapshot stands."""
    seq: int
    """Its place in the lineage."""
    gate_passed: bool
    """Whether a passing report is bound to its digest."""
    policy_digest: str
    """The policy its report was judged by."""
    lineage_policy_digest: str
    """The policy of the lineage now."""
    champion_id: str | None
    """The champion now."""
    champion_seq: int
    """Its place; 0 for the base."""
    is_under_approved: bool
    """Whether an approved snapshot stands on this one."""


def refusal(approval: Approval, standing: Standing) -> str | None:
    """Return why a decision cannot be carried out, in one sentence; None if it can."""
    if approval.snapshot_digest != standing.digest:
        return f"the digest seen ({approval.snapshot_digest[:12]}) is not the snapshot's ({standing.digest[:12]})"
    if approval.champion_seen != standing.champion_id:
        return "the champion has moved since it was looked at; look again and decide again"
    match approval.decision:
        case Decision.approved:
            return _approval_refusal(standing)
        case Decision.rejected:
            return _rejection_refusal(standing)
        case Decision.rolled_back:
            return _rollback_refusal(standing)


def _approval_refusal(standing: Standing) -> str | None:
    if standing.status not in (SnapshotStatus.candidate, SnapshotStatus.rolled_back):
        return f"a snapshot that is {standing.status} cannot be approved"
    if not standing.gate_passed:
        return "no passing gate report is bound to its digest"
    if standing.policy_digest != standing.lineage_policy_digest:
        return "the lineage's gate policy has changed since it was judged"
    if standing.seq <= standing.champion_seq:
        return f"it is behind the champion ({standing.seq} <= {standing.champion_seq}); roll back instead"
    return None


def _rejection_refusal(standing: Standing) -> str | None:
    if standing.is_under_approved:
        return "an approved snapshot stands on it; revert its edits instead"
    if standing.status is not SnapshotStatus.candidate:
        return f"a snapshot that is {standing.status} cannot be rejected; revert its edits instead"
    return None


def _rollback_refusal(standing: Standing) -> str | None:
    if standing.status is not SnapshotStatus.approved:
        return f"a snapshot that is {standing.status} cannot be rolled back to"
    if standing.seq >= standing.champion_seq:
        return f"it is not an ancestor of the champion ({standing.seq} >= {standing.champion_seq})"
    return None
