"""Thresholds in, verdict out. `editors/measure/scorer.py` measures; nothing here knows a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from pipeline.domain.canonical import sha256_json
from pipeline.domain.measurements import EditScore, Measurements, ModelScore, share
from pipeline.domain.rank_api import EditorIdentity


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePolicy:
    """What a snapshot has to show before anybody may approve it. Shares are 0 to 1."""

    edit_success_min: float = 0.9
    """Least share of the batch's edits whose target is the argmax at every token."""
    free_success_min: float = 0.5
    """Least share of the batch's edits that free greedy generation of the raw prompt confirms."""
    generalization_min: float = 0.0
    """Least share of rephrases that follow; 0 reports without judging."""
    locality_drop_max: float = 0.1
    """Most that the unchanged share of the lineage's suite may fall below the parent's."""
    locality_kl_max: float = 0.5
    """Most nats of KL divergence from the parent, mean over the suite's probes."""
    edit_locality_kl_max: float = 0.5
    """Most nats of KL divergence from the parent, mean over one edit's own locality probes, for edits with any."""
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

    @property
    def digest(self) -> str:
        """SHA-256 of the thresholds, kept in every report."""
        return sha256_json(asdict(self))


class Verdict(StrEnum):
    """How one metric, or the whole report, came out."""

    passed = "passed"
    failed = "failed"
    not_measured = "not_measured"
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
    threshold: float
    """The bound that `value` is held against."""
    against: str
    """`parent`, `base` or `policy`."""
    verdict: Verdict
    """How it came out."""
    required: bool = True
    """Whether `not_measured` keeps the whole report from passing."""


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
        parts = [f"{row.metric} {_figure(row.value)} (bound {row.threshold:.3g})" for row in bad]
        parts += [f"{row.metric} was not measured" for row in missing]
        parts += [f"{len(self.offenders)} edits fail on their own"] if self.offenders else []
        return "; ".join(parts) or "every metric is within its bound"


def judge(policy: GatePolicy, measurements: Measurements, *, editor: EditorIdentity | None = None) -> GateReport:
    """Hold what was measured of an editor's change against a policy.

    Bounds for the batch are against the parent, floors against the base. A breached floor is nobody's
    fault in this batch: the verdict is `saturated`.
    """
    rows = (*_batch_rows(policy, measurements), *_floor_rows(policy, measurements))
    edits = tuple(_edit_verdict(policy, score) for score in measurements.edits)
    return GateReport(
        verdict=_overall(rows, edits),
        policy_digest=policy.digest,
        rows=rows,
        edits=edits,
        measurements=measurements,
        editor=editor,
    )


def _batch_rows(policy: GatePolicy, m: Measurements) -> tuple[GateRow, ...]:
    candidate, parent = m.candidate, m.parent
    has_edits = bool(m.edits)
    return (
        _row(
            "edit_success",
            share(s.edit_success for s in m.edits),
            policy.edit_success_min,
            required=has_edits,
        ),
        _row(
            "free_success",
            share(s.free_success for s in m.edits if s.free_success is not None),
            policy.free_success_min,
            required=has_edits,
        ),
        _row(
            "generalization",
            share(flag for s in m.edits for flag in s.rephrases),
            policy.generalization_min,
            required=False,
        ),
        _row(
            "locality",
            candidate.suite_unchanged,
            _minus(parent.suite_unchanged, policy.locality_drop_max),
            reference=parent.suite_unchanged,
            against="parent",
        ),
        _row("locality_kl", m.kl_from_parent, policy.locality_kl_max, is_most=True, against="parent"),
        _row(
            "retention",
            candidate.retention,
            _minus(parent.retention, policy.retention_drop_max),
            reference=parent.retention,
            against="parent",
            required=candidate.num_retained > 0,
        ),
        _row(
            "perplexity",
            candidate.perplexity,
            (parent.perplexity or 0.0) * (1 + policy.perplexity_rise_max),
            is_most=True,
            reference=parent.perplexity,
            against="parent",
            required=not _has_accuracy(m),
        ),
        *_accuracy_rows(policy, m),
        _row("change_norm", m.change_norm, policy.change_norm_max, is_most=True),
    )


def _has_accuracy(m: Measurements) -> bool:
    """Return whether it is a classifier's, which has an accuracy on its suite and no perplexity."""
    return m.base.accuracy is not None


def _accuracy_rows(policy: GatePolicy, m: Measurements) -> tuple[GateRow, ...]:
    if not _has_accuracy(m):
        return ()
    return (
        _row(
            "accuracy",
            m.candidate.accuracy,
            _minus(m.parent.accuracy, policy.accuracy_drop_max),
            reference=m.parent.accuracy,
            against="parent",
        ),
        _row(
            "accuracy_floor",
            m.candidate.accuracy,
            (m.base.accuracy or 0.0) * policy.accuracy_floor,
            is_floor=True,
            reference=m.base.accuracy,
            against="base",
        ),
    )


def _floor_rows(policy: GatePolicy, m: Measurements) -> tuple[GateRow, ...]:
    base_perplexity = m.base.perplexity
    return (
        _row("locality_floor", m.candidate.suite_unchanged, policy.locality_floor, is_floor=True, against="base"),
        _row(
            "retention_floor",
            m.candidate.retention,
            policy.retention_floor,
            is_floor=True,
            against="base",
            required=False,
        ),
        _row(
            "perplexity_ceiling",
            m.candidate.perplexity,
            (base_perplexity or 0.0) * policy.perplexity_ceiling,
            is_most=True,
            is_floor=True,
            reference=base_perplexity,
            against="base",
            required=not _has_accuracy(m),
        ),
    )


def _row(
    metric: str,
    value: float | None,
    bound: float,
    *,
    is_most: bool = False,
    is_floor: bool = False,
    reference: float | None = None,
    against: str = "policy",
    required: bool = True,
) -> GateRow:
    """Hold a value against the least it may be, or the most (`is_most`); missing a floor saturates the lineage."""
    if value is None:
        verdict = Verdict.not_measured
    elif value <= bound if is_most else value >= bound:
        verdict = Verdict.passed
    else:
        verdict = Verdict.saturated if is_floor else Verdict.failed
    return GateRow(
        metric=metric,
        value=value,
        reference=reference,
        threshold=bound,
        against=against,
        verdict=verdict,
        required=required,
    )


def _edit_verdict(policy: GatePolicy, score: EditScore) -> EditVerdict:
    if not score.edit_success:
        reason = f"the target is not the argmax after the prompt ({score.token_fraction:.2f} of its tokens are)"
        return EditVerdict(edit_id=score.edit_id, passed=False, reason=reason)
    unchanged = share(score.locality)
    if score.locality_kl is not None and score.locality_kl > policy.edit_locality_kl_max:
        reason = f"its neighbours moved by {score.locality_kl:.2f} nats (bound {policy.edit_locality_kl_max:.2f})"
        return EditVerdict(edit_id=score.edit_id, passed=False, reason=reason)
    return EditVerdict(edit_id=score.edit_id, passed=True, reason=_praise(score, unchanged))


def _praise(score: EditScore, unchanged: float | None) -> str:
    follows = share(score.rephrases)
    rephrases = "rephrases not measured" if follows is None else f"{follows:.2f} of its rephrases follow"
    neighbours = "neighbours not measured" if unchanged is None else f"{unchanged:.2f} of its neighbours unchanged"
    return f"the target is the argmax; {rephrases}; {neighbours}"


def _overall(rows: tuple[GateRow, ...], edits: tuple[EditVerdict, ...]) -> Verdict:
    verdicts = {row.verdict for row in rows}
    if Verdict.failed in verdicts or any(not edit.passed for edit in edits):
        return Verdict.failed
    if Verdict.saturated in verdicts:
        return Verdict.saturated
    if any(row.verdict is Verdict.not_measured and row.required for row in rows):
        return Verdict.failed
    return Verdict.passed


def _minus(value: float | None, margin: float) -> float:
    return 0.0 if value is None else value - margin


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"


def unmeasured(
    policy: GatePolicy, edit_ids: Iterable[str], *, reason: str, editor: EditorIdentity | None = None
) -> GateReport:
    """Return a failing report for edits whose candidate could not be measured at all, with the reason on each."""
    nothing = ModelScore()
    return GateReport(
        verdict=Verdict.failed,
        policy_digest=policy.digest,
        rows=(),
        edits=tuple(EditVerdict(edit_id=edit_id, passed=False, reason=reason) for edit_id in edit_ids),
        measurements=Measurements(edits=(), candidate=nothing, parent=nothing, base=nothing),
        editor=editor,
    )
