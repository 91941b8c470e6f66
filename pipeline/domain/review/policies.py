"""Who has to approve a lineage's snapshots before they go live: nobody, one person, two, and which persons.

Whatever the policy, a snapshot that has not passed its gates goes live by nobody's approval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from pipeline.domain.errors import InvalidInput

MAX_APPROVERS = 5


class ApprovalRule(StrEnum):
    """Whose decisions a lineage takes; also the names of the policies that demand just that."""

    anyone = "anyone"
    """Also those of names that are only claimed."""
    authenticated = "authenticated"
    """Those of reviewers who log in."""
    four_eyes = "four_eyes"
    """Those of reviewers who log in, and no approval of what they have asked for themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Risk:
    """What may go wrong when a snapshot goes live, over all that goes live with it."""

    num_edits: int
    """Edits that come in, and edits that are taken out, since the champion."""
    worst_locality: float | None
    """Least share of neighbours that answer as before: of the suite's, of one edit's own, or of other subjects that one
    edit's prompt was asked about; None if not measured."""
    quality_loss: float | None
    """How much perplexity rises over the champion's, as a fraction, or a classifier's accuracy falls; None if not
    measured."""
    is_solved_anew: bool = False
    """Whether a ledger that was solved anew goes live, which changes every edit and brings none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RiskLimit:
    """Up to where a snapshot goes live without a person. Shares are 0 to 1."""

    max_edits: int = 5
    """Most edits that may go live at once."""
    min_locality: float = 0.9
    """Least share of neighbours that answer as before."""
    max_quality_loss: float = 0.02
    """Most that perplexity may rise, as a fraction, or accuracy fall."""

    def __post_init__(self) -> None:
        if self.max_edits < 1 or not 0 <= self.min_locality <= 1 or self.max_quality_loss < 0:
            raise InvalidInput(f"expected a limit of 1 edit or more, a share and no negative loss, got {self}")

    def objection(self, risk: Risk) -> str | None:
        """Return why a person has to look, in one sentence; None if nobody has to."""
        if risk.is_solved_anew:
            return "its ledger was solved anew, which changes what every edit does"
        if risk.num_edits > self.max_edits:
            return f"{risk.num_edits} edits would go live, and {self.max_edits} may without a person"
        if risk.worst_locality is None or risk.quality_loss is None:
            return "its locality or quality was not measured"
        if risk.worst_locality < self.min_locality:
            return f"the worst locality is {risk.worst_locality:.3g}, and {self.min_locality:.3g} is the least"
        if risk.quality_loss > self.max_quality_loss:
            return f"quality falls by {risk.quality_loss:.3g}, and {self.max_quality_loss:.3g} is the most"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalPolicy:
    """How a lineage's snapshots are approved."""

    approvers: int = 1
    """How many people have to approve; 0 lets whatever passes its gates go live."""
    not_own: bool = False
    """Whether nobody may approve what they have asked for themselves."""
    requires_known_actor: bool = False
    """Whether only those decide who log in; a name that is only claimed does not."""
    requires_reason: bool = False
    """Whether a decision has to say why."""
    automatic_below: RiskLimit | None = None
    """Up to where a snapshot goes live without a person; None if a person always decides."""

    def __post_init__(self) -> None:
        if not 0 <= self.approvers <= MAX_APPROVERS:
            raise InvalidInput(f"expected 0 to {MAX_APPROVERS} approvers, got {self.approvers}")
        if (self.approvers > 1 or self.not_own) and not self.requires_known_actor:
            message = "expected that approvers log in: else nobody can tell two of them, or one from a submitter, apart"
            raise InvalidInput(message)
        if not self.approvers and self.automatic_below:
            raise InvalidInput("expected approvers for what is above the risk, or no limit of risk; got neither")

    @property
    def is_automatic(self) -> bool:
        """Whether some snapshots go live without a person."""
        return not self.approvers or self.automatic_below is not None

    @property
    def num_needed(self) -> int:
        """How many people it takes once people decide."""
        return max(1, self.approvers)

    @property
    def rule(self) -> ApprovalRule:
        """What is demanded of those who decide, as earlier versions know it."""
        if self.not_own:
            return ApprovalRule.four_eyes
        return ApprovalRule.authenticated if self.requires_known_actor else ApprovalRule.anyone

    def automatic_objection(self, risk: Risk | None) -> str | None:
        """Return why a snapshot does not go live without a person; None if it does."""
        if not self.approvers:
            return None
        if self.automatic_below is None:
            return "a person decides about every snapshot of this lineage"
        return "its risk is not known" if risk is None else self.automatic_below.objection(risk)

    def words(self) -> str:
        """Say in one sentence who has to approve."""
        people = {0: "Nobody has to approve: what passes its gates goes live", 1: "One person has to approve"}
        parts = [people.get(self.approvers, f"{self.approvers} people have to approve")]
        parts += ["who logged in" if self.approvers == 1 else "each logged in"] if self.requires_known_actor else []
        parts += ["nobody what they asked for themselves"] if self.not_own else []
        parts += ["a reason has to be given"] if self.requires_reason else []
        if (limit := self.automatic_below) is not None:
            parts.append(
                f"nobody where at most {limit.max_edits} edits go live, locality is {limit.min_locality:.3g} or more "
                f"and quality falls by {limit.max_quality_loss:.3g} at most"
            )
        return ", ".join(parts) + "."


NAMED: Mapping[str, ApprovalPolicy] = MappingProxyType(
    {
        "anyone": ApprovalPolicy(),
        "authenticated": ApprovalPolicy(requires_known_actor=True),
        "four_eyes": ApprovalPolicy(requires_known_actor=True, not_own=True),
        "two_approvers": ApprovalPolicy(requires_known_actor=True, not_own=True, approvers=2, requires_reason=True),
        "gates_only": ApprovalPolicy(approvers=0),
        "low_risk": ApprovalPolicy(automatic_below=RiskLimit()),
    }
)
"""Policies that people ask for by name."""


def named(name: str) -> ApprovalPolicy:
    """Return the policy of a name.

    Raises:
        InvalidInput: if no policy has that name.
    """
    if name not in NAMED:
        raise InvalidInput(f"expected the name of an approval policy, one of {', '.join(NAMED)}; got {name!r:.80}")
    return NAMED[name]


def changed_policy(policy: ApprovalPolicy, *, demands: Mapping[str, Any], limits: Mapping[str, Any]) -> ApprovalPolicy:
    """Return a policy with other fields, and other fields of its limit of risk; those that are None stay.

    Raises:
        InvalidInput: if it cannot be kept.
    """
    told = {key: value for key, value in limits.items() if value is not None}
    given = {key: value for key, value in demands.items() if value is not None}
    if told:
        given["automatic_below"] = replace(policy.automatic_below or RiskLimit(), **told)
    return replace(policy, **given)


def policy_of(stored: Mapping[str, Any] | None, rule: str) -> ApprovalPolicy:
    """Return a policy as it is stored beside the rule that earlier versions read, and may have changed alone."""
    if stored is None:
        return named(rule)
    limit = stored.get("automatic_below")
    fields = {**stored, "automatic_below": RiskLimit(**limit) if limit else None}
    found = ApprovalPolicy(**fields)
    return found if found.rule == rule else named(rule)


def risk_of(reports: Sequence[Mapping[str, Any]], *, num_edits: int, champion: Mapping[str, Any] | None = None) -> Risk:
    """Return the risk of snapshots that go live together, from their gate reports as JSON, oldest first.

    Quality is compared with the report of the champion; where that lacks it, with what the oldest was edited from.
    """
    measured: list[Mapping[str, Any]] = [report.get("measurements") or {} for report in reports]
    suites = [(found.get("candidate") or {}).get("suite_unchanged") for found in measured]
    edits = [edit for found in measured for edit in found.get("edits") or ()]
    asked = [edit.get("locality") or () for edit in edits]
    asked += [[other["is_unchanged"] for other in edit.get("other_subjects") or ()] for edit in edits]
    own = [sum(flags) / len(flags) for flags in asked if flags]
    if not measured or None in suites:
        return Risk(num_edits=num_edits, worst_locality=None, quality_loss=None)
    live = ((champion or {}).get("measurements") or {}).get("candidate") or {}
    before, after = measured[0].get("parent") or {}, measured[-1].get("candidate") or {}
    loss = _quality_loss({**before, **{name: value for name, value in live.items() if value is not None}}, after)
    return Risk(num_edits=num_edits, worst_locality=min([*suites, *own]), quality_loss=loss)


def _quality_loss(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    for name in ("perplexity", "accuracy"):
        old, new = before.get(name), after.get(name)
        if old and new is not None:
            return float(new / old - 1 if name == "perplexity" else old - new)
    return None
