"""Who decided what about a snapshot."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.review.policies import ApprovalPolicy, Risk


class Decision(StrEnum):
    """What can be decided about a snapshot."""

    approved = "approved"
    endorsed = "endorsed"
    """An approval after which the lineage's policy asks for another person's."""
    rejected = "rejected"
    rolled_back = "rolled_back"


class Channel(StrEnum):
    """Where a decision came in."""

    cli = "cli"
    api = "api"
    page = "page"
    """On the review pages."""
    registry = "registry"
    policy = "policy"
    """By nobody: the lineage's policy lets such a snapshot go live by itself."""


REVIEWER = "reviewer:"
"""Begins the name of an actor who logged in as a reviewer; the database lets nobody else write it."""
MLFLOW_USER = "mlflow-user:"
"""Begins the name of an actor who logged in to an MLflow server that tells us so; the control worker writes it."""
PERSON = "person:"
"""Begins the name of an actor who showed a token to the HTTP API or logged in to its pages; its process writes it."""
AUTOMATIC = "policy:automatic"
"""The actor of approvals that a policy makes by itself; the control worker writes it."""
AUTHENTICATED = (REVIEWER, MLFLOW_USER, PERSON, AUTOMATIC)
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
    num_approvals: int = 1
    """How many people have approved the snapshot by now, if it was approved."""
    num_needed: int = 1
    """How many have to before it goes live."""

    @property
    def awaits_others(self) -> bool:
        """Whether the decision was taken down, and the snapshot goes live only after other people's approval."""
        return self.is_accepted and self.num_approvals < self.num_needed

    @property
    def awaited(self) -> str:
        """What is still to come, in a few words."""
        missing = self.num_needed - self.num_approvals
        more = "one more person has" if missing == 1 else f"{missing} more people have"
        return f"{self.num_approvals} of {self.num_needed} approvals; {more} to approve it"


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
    policy: ApprovalPolicy = field(default_factory=ApprovalPolicy)
    """Who has to approve, and whose decisions the lineage takes."""
    endorsers: tuple[str, ...] = ()
    """Who has approved it so far, of those whom the policy needs, with the same champion before their eyes."""
    risk: Risk | None = None
    """The risk of all that would go live; None where the policy does not ask."""
    asked: Mapping[str | None, str] = field(default_factory=dict)
    """Who asked for what would go live by approving it, and a request of each; None asked where nobody says."""
    takes_out: int | None = None
    """Place of the rejected snapshot whose ledger it takes out; None where that is not what it is for."""


def refusal(approval: Approval, standing: Standing) -> str | None:
    """Return why a decision cannot be carried out, in one sentence; None if it can."""
    if approval.snapshot_digest != standing.digest:
        return f"the digest seen ({approval.snapshot_digest[:12]}) is not the snapshot's ({standing.digest[:12]})"
    if approval.champion_seen != standing.champion_id:
        return "the champion has moved since it was looked at; look again and decide again"
    if (objection := _actor_objection(approval, standing)) is not None:
        return objection
    match approval.decision:
        case Decision.approved | Decision.endorsed:
            return _approval_refusal(standing) or _own_refusal(approval.actor, standing)
        case Decision.rejected:
            return _rejection_refusal(standing)
        case Decision.rolled_back:
            return _rollback_refusal(standing)


def approvers(approval: Approval, standing: Standing) -> tuple[str, ...]:
    """Return who has approved a snapshot once this approval counts, each person once."""
    others = [actor for actor in standing.endorsers if not is_same_person(actor, approval.actor)]
    return (*others, approval.actor)


def is_last_needed(approval: Approval, standing: Standing) -> bool:
    """Return whether an approval that is not refused makes the snapshot live."""
    return approval.actor == AUTOMATIC or len(approvers(approval, standing)) >= standing.policy.num_needed


def _actor_objection(approval: Approval, standing: Standing) -> str | None:
    """Return why this actor does not decide here, or not without more words."""
    policy = standing.policy
    if approval.actor == AUTOMATIC:
        if approval.decision is not Decision.approved:
            return "without a person snapshots are approved, and nothing else"
        return policy.automatic_objection(standing.risk)
    if policy.requires_known_actor and approval.is_claimed:
        return f"this lineage takes decisions of reviewers who log in, and {approval.actor} did not; see `reviewer add`"
    if policy.requires_reason and not approval.reason.strip():
        return "this lineage asks why: give a reason (`--reason`, or the tag approval.reason before you ask in MLflow)"
    return None


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
    if not standing.policy.not_own or actor == AUTOMATIC:
        return None
    for submitter, request in standing.asked.items():
        if submitter is None:
            return f"nobody is named as the submitter of {request}, so it cannot be told from your own"
        if is_same_person(actor, submitter):
            return f"you asked for {request} yourself; somebody else has to approve it"
    return None


def _rejection_refusal(standing: Standing) -> str | None:
    if standing.is_under_approved:
        return "an approved snapshot stands on it; revert its edits instead"
    if standing.status is not SnapshotStatus.candidate:
        was = standing.status.replace("_", " ")
        return f"a snapshot that was {was} cannot be rejected; revert its edits instead"
    if (seq := standing.takes_out) is not None:
        return (
            f"it takes out the ledger of snapshot {seq}, which was rejected: there is none to go back to; "
            "approve it, or `lineage rekey` for another ledger"
        )
    return None


def _rollback_refusal(standing: Standing) -> str | None:
    if standing.status is not SnapshotStatus.approved:
        return f"a snapshot that is {standing.status} cannot be rolled back to"
    if standing.seq >= standing.champion_seq:
        return f"it is not an ancestor of the champion ({standing.seq} >= {standing.champion_seq})"
    return None
