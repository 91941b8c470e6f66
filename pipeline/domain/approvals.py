"""Who decided what about a snapshot."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
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


class ApprovalRule(StrEnum):
    """Whose decisions a lineage takes."""

    anyone = "anyone"
    """Also those of names that are only claimed."""
    authenticated = "authenticated"
    """Those of reviewers who log in."""
    four_eyes = "four_eyes"
    """Those of reviewers who log in, and no approval of what they have asked for themselves."""


REVIEWER = "reviewer:"
"""Begins the name of an actor who logged in as a reviewer; the database lets nobody else write it."""
MLFLOW_USER = "mlflow-user:"
"""Begins the name of an actor who logged in to an MLflow server that tells us so; the control worker writes it."""
PERSON = "person:"
"""Begins the name of an actor who showed a token to the HTTP API or logged in to its pages; its process writes it."""
AUTHENTICATED = (REVIEWER, MLFLOW_USER, PERSON)
CLAIMED = " (claimed)"
"""Ends the name of a person that somebody only wrote down."""
_PERSONS = ("cli:", "api:", "mlflow:")


def claimed_actor(channel: str, name: str) -> str:
    """Return the actor of somebody who says to be so called: `cli:anna (claimed)`."""
    return f"{channel}:{name.removesuffix(CLAIMED)}{CLAIMED}"


def is_claimed_actor(actor: str) -> bool:
    """Return whether an actor is a person who is only said to be it. Lines of before have no mark, and are so too."""
    return actor.startswith(_PERSONS)


def shown_actor(actor: str) -> str:
    """Return an actor with its mark, which lines of before lack."""
    return actor + CLAIMED if is_claimed_actor(actor) and not actor.endswith(CLAIMED) else actor


def is_same_person(actor: str, other: str) -> bool:
    """Return whether two names may be one person's: they are equal but for channel, mark, case and width of letters."""
    return _person(actor) == _person(other)


def _person(actor: str) -> str:
    name = unicodedata.normalize("NFKC", actor).strip().removesuffix(CLAIMED)
    channel, colon, rest = name.partition(":")
    is_prefixed = f"{channel}{colon}" in (*AUTHENTICATED, *_PERSONS)
    return (rest if is_prefixed else name).strip().casefold()


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
    """`reviewer:NAME`, `mlflow-user:NAME`, or `cli:NAME (claimed)`, `mlflow:unknown (claimed)` and the like."""
    is_claimed: bool
    """Whether the actor's name is only what somebody wrote; False only of somebody who logged in."""
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
    shortfall: str | None = "nobody has judged it again"
    """What the lineage's policy of now finds wanting, where its report was judged by another; None if nothing."""
    rule: ApprovalRule = ApprovalRule.anyone
    """Whose decisions the lineage takes."""
    asked: Mapping[str, str | None] = field(default_factory=dict)
    """What would go live by approving it, one request for each who asked: its id, and who; None if nobody says."""


def refusal(approval: Approval, standing: Standing) -> str | None:
    """Return why a decision cannot be carried out, in one sentence; None if it can."""
    if approval.snapshot_digest != standing.digest:
        return f"the digest seen ({approval.snapshot_digest[:12]}) is not the snapshot's ({standing.digest[:12]})"
    if approval.champion_seen != standing.champion_id:
        return "the champion has moved since it was looked at; look again and decide again"
    if standing.rule is not ApprovalRule.anyone and approval.is_claimed:
        return f"this lineage takes decisions of reviewers who log in, and {approval.actor} did not; see `reviewer add`"
    match approval.decision:
        case Decision.approved:
            return _approval_refusal(standing) or _own_refusal(approval.actor, standing)
        case Decision.rejected:
            return _rejection_refusal(standing)
        case Decision.rolled_back:
            return _rollback_refusal(standing)


def _approval_refusal(standing: Standing) -> str | None:
    if standing.status not in (SnapshotStatus.candidate, SnapshotStatus.rolled_back):
        return f"a snapshot that is {standing.status} cannot be approved"
    if not standing.gate_passed:
        return "no passing gate report is bound to its digest"
    if standing.policy_digest != standing.lineage_policy_digest and standing.shortfall is not None:
        return f"the lineage's gate policy has changed since it was judged, and it does not pass: {standing.shortfall}"
    if standing.seq <= standing.champion_seq:
        return f"it is behind the champion ({standing.seq} <= {standing.champion_seq}); roll back instead"
    return None


def _own_refusal(actor: str, standing: Standing) -> str | None:
    if standing.rule is not ApprovalRule.four_eyes:
        return None
    for request, submitter in standing.asked.items():
        if submitter is None:
            return f"nobody is named as the submitter of {request}, so it cannot be told from your own"
        if is_same_person(actor, submitter):
            return f"you asked for {request} yourself; somebody else has to approve it"
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
