"""The thresholds of a lineage and the report on a candidate; `judging` makes one from the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from pipeline.domain.formats.canonical import sha256_json
from pipeline.domain.measurements import Measurements
from pipeline.domain.rank_api import EditorIdentity


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePolicy:
    """What a snapshot has to show before anybody may approve it. Shares are 0 to 1; `bounds` says more of each."""

    edit_success_min: float = 0.9
    """Least share of the batch's edits whose target is the argmax at every token."""
    free_success_min: float = 0.5
    """Least share of the batch's edits that free greedy generation of the raw prompt confirms."""
    generalization_min: float = 0.1
    """Least share of rephrases that follow, of those that name the subject; 0 reports without judging."""
    other_context_min: float = 0.0
    """The same of rephrases that name the subject behind other text than the edit's prompt."""
    chat_success_min: float = 0.25
    """Least share of questions that a chat answers rightly, of those that were asked; 0 reports without judging."""
    judged_wordings_min: int = 4
    """Least number of rephrases, or of questions, that a share has to be of before it is judged by these three."""
    locality_drop_max: float = 0.1
    """Most that the unchanged share of the lineage's suite may fall below the parent's."""
    locality_kl_max: float = 0.5
    """Most nats of KL divergence from the parent, mean over the suite's probes."""
    edit_locality_kl_max: float = 0.5
    """Most nats of KL divergence from the parent, mean over one edit's own locality probes, for edits with any."""
    other_subjects_taken_max: float | None = 0.5
    """Most of the other subjects that one edit's prompt is asked about, as a share, may get the edit's own answer."""
    other_subjects_kl_max: float | None = 1.0
    """Most nats of KL divergence from the parent, mean over one edit's other subjects, at an answer's first token."""
    same_subject_lost_max: float | None = 0.0
    """Most of the active facts about one edit's subject, as a share of those that held, may be lost by making it."""
    retention_drop_max: float = 0.1
    """Most that the success of older active edits may fall below what it was on the parent."""
    perplexity_rise_max: float = 0.05
    """Most that perplexity may rise over the parent's, as a fraction; not of a classifier."""
    accuracy_drop_max: float = 0.05
    """Most that a classifier's accuracy on the lineage's suite may fall below the parent's."""
    change_norm_max: float = 0.2
    """Most that one snapshot may change an inner parameter, as a fraction of its norm in the base."""
    locality_floor: float = 0.5
    """Least unchanged share of the suite against the base; below it the lineage is saturated."""
    retention_floor: float = 0.5
    """Least success of older active edits; below it the lineage is saturated."""
    perplexity_ceiling: float = 1.25
    """Most that perplexity may be, as a multiple of the base's; above it the lineage is saturated."""
    accuracy_floor: float = 0.8
    """Least accuracy of a classifier, as a fraction of the base's; below it the lineage is saturated."""

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Read a policy from JSON; one that was stored before a bound came in does not judge by it."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in {**UNJUDGED, **stored}.items() if name in known})

    @property
    def digest(self) -> str:
        """SHA-256 of the thresholds, kept in every report.

        Thresholds that came later count only where they judge: policies and reports from before keep their digest.
        """
        fields_of = asdict(self).items()
        return sha256_json(
            {name: value for name, value in fields_of if name not in UNJUDGED or value != UNJUDGED[name]}
        )


UNJUDGED: Mapping[str, Any] = {
    "other_context_min": 0.0,
    "chat_success_min": 0.0,
    "judged_wordings_min": 1,
    "other_subjects_taken_max": None,
    "other_subjects_kl_max": None,
    "same_subject_lost_max": None,
}
"""Thresholds that the first policies did not have, each at the value that judges nothing."""


class Verdict(StrEnum):
    """How one metric, or the whole report, came out."""

    passed = "passed"
    failed = "failed"
    not_measured = "not_measured"
    reported = "reported"
    """It was measured, and the policy has no bound for it."""
    saturated = "saturated"


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """One metric against its threshold."""

    metric: str
    """Name, as in the glossary."""
    value: float | None
    """What was measured; None if it was not."""
    reference: float | None
    """The parent's or the base's value, where the threshold is relative to one."""
    threshold: float | None
    """The bound that `value` is held against; None where it is only reported."""
    against: str
    """`parent`, `base` or `policy`."""
    verdict: Verdict
    """How it came out."""
    required: bool = True
    """Whether `not_measured` keeps the whole report from passing."""
    num_measured: int | None = None
    """How many probes of the batch's edits the value is a share of; None where it is no such share."""
    is_most: bool = False
    """Whether the threshold is the most that the value may be; otherwise it is the least."""

    @property
    def bound(self) -> str:
        """The threshold in words."""
        return bound_text(asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class EditVerdict:
    """Why one edit passed or not."""

    edit_id: str
    """The edit that was judged."""
    passed: bool
    """Whether what was measured of this edit alone is acceptable."""
    reason: str
    """One sentence with the figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """What was measured, against which policy, and what follows."""

    verdict: Verdict
    """`passed`, `failed` (bisect) or `saturated` (pause the lineage)."""
    policy_digest: str
    """SHA-256 of the thresholds it was held against."""
    rows: tuple[GateRow, ...]
    """One row a metric."""
    edits: tuple[EditVerdict, ...]
    """One row an edit."""
    measurements: Measurements
    """The figures behind the rows."""
    editor: EditorIdentity | None = None
    """What made the change that was measured."""
    policy: GatePolicy | None = None
    """The thresholds it was held against; None in reports from before they were kept."""

    @property
    def passed(self) -> bool:
        """Whether the snapshot may become a candidate."""
        return self.verdict is Verdict.passed

    @property
    def offenders(self) -> frozenset[str]:
        """Edits that fail by what was measured of them alone."""
        return frozenset(row.edit_id for row in self.edits if not row.passed)

    @property
    def summary(self) -> str:
        """One sentence: the rows that did not pass, with their figures."""
        bad = [row for row in self.rows if row.verdict in (Verdict.failed, Verdict.saturated)]
        missing = [row for row in self.rows if row.verdict is Verdict.not_measured and row.required]
        parts = [f"{row.metric} {_figure(row.value)} ({row.bound})" for row in bad]
        parts += [f"{row.metric} was not measured" for row in missing]
        num = len(self.offenders)
        parts += [f"{num} {'edit fails on its' if num == 1 else 'edits fail on their'} own"] if num else []
        if parts and (left := self.measurements.scaled_back) is not None:
            parts.append(f"the editor's bound left {left:.3g} of the change that was asked")
        return "; ".join(parts) or "every metric is within its bound"


MOST = frozenset({"locality_kl", "perplexity", "change_norm", "perplexity_ceiling"})
"""Metrics whose threshold is the most, in reports from before a row said so."""


def bound_text(row: Mapping[str, Any]) -> str:
    """Return the threshold of a report's row in words: `minimum 0.9`, `maximum 0.5`, or `no bound`."""
    threshold = row.get("threshold")
    # The first reports had a minimum of 0 where nothing was judged.
    if not isinstance(threshold, int | float) or (threshold == 0 and row.get("num_measured") is not None):
        return "no bound"
    is_most = row.get("is_most", row.get("metric") in MOST)
    return f"{'maximum' if is_most else 'minimum'} {threshold:.3g}"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
