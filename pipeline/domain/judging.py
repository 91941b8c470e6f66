"""Thresholds in, verdict out. `editors/measure/scorer.py` measures; nothing here knows a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pipeline.domain.edits import EditRequest
from pipeline.domain.gates import EditVerdict, GatePolicy, GateReport, GateRow, Verdict
from pipeline.domain.measurements import EditScore, Measurements, ModelScore, mean, share
from pipeline.domain.rank_api import EditorIdentity
from pipeline.domain.reasons import praise, refusal


def judge(
    policy: GatePolicy,
    measurements: Measurements,
    *,
    editor: EditorIdentity | None = None,
    requests: Mapping[str, EditRequest] | None = None,
    is_undo: bool = False,
) -> GateReport:
    """Hold what was measured of an editor's change against a policy.

    Bounds for the batch are against the parent, floors against the base. A breached floor is nobody's
    fault in this batch: the verdict is `saturated`.

    Args:
        policy: the bounds.
        measurements: what was measured.
        editor: what made the change.
        requests: what was asked, by edit id, so that a reason can quote it.
        is_undo: whether it brings an earlier ledger back. Nobody wants its parent, so bounds against that only report.
    """
    of_batch = _batch_rows(policy, measurements)
    if is_undo:
        of_batch = tuple(_reported(row) for row in of_batch)
    rows = (*of_batch, *_floor_rows(policy, measurements))
    asked = requests or {}
    edits = tuple(_edit_verdict(policy, score, asked.get(score.edit_id)) for score in measurements.edits)
    return GateReport(
        verdict=_overall(rows, edits),
        policy_digest=policy.digest,
        rows=rows,
        edits=edits,
        measurements=measurements,
        editor=editor,
        policy=policy,
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
        *_wording_rows(policy, m),
        _row(
            "locality",
            candidate.suite_unchanged,
            _minus(parent.suite_unchanged, policy.locality_drop_max),
            reference=parent.suite_unchanged,
            against="parent",
        ),
        _row("locality_kl", m.kl_from_parent, policy.locality_kl_max, is_most=True, against="parent"),
        *_other_rows(m),
        *_same_subject_rows(m),
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
        *_ledger_rows(m),
    )


def _ledger_rows(m: Measurements) -> tuple[GateRow, ...]:
    """Return what is told of the solve: what a bound left of it, the prior's strength, how far it moved the weights."""
    told = {"scaled_back": m.scaled_back, "prior_strength": m.prior_strength, "solved_anew": m.solved_anew}
    return tuple(_row(name, value, None, required=False) for name, value in told.items() if value is not None)


def _wording_rows(policy: GatePolicy, m: Measurements) -> tuple[GateRow, ...]:
    """Return how the edits hold in other words: rephrases and their classes, those that were edit rows, and chats."""
    found: dict[str, tuple[list[bool], float]] = {
        "generalization": ([flag for s in m.edits for flag in s.rephrases], policy.generalization_min),
        "generalization_same_context": ([flag for s in m.edits for flag in s.same_context], 0.0),
        "generalization_other_context": ([f for s in m.edits for f in s.other_context], policy.other_context_min),
        "generalization_unnamed": ([flag for s in m.edits for flag in s.unnamed], 0.0),
        "row_rephrases": ([flag for s in m.edits for flag in s.row_rephrases], 0.0),
        "chat_success": ([s.chat_success for s in m.edits if s.chat_success is not None], policy.chat_success_min),
    }
    # A share of one or two is 0 or 1 by chance: it is told, and judges nobody.
    least = policy.judged_wordings_min
    return tuple(
        _row(
            name,
            share(flags),
            (bound or None) if len(flags) >= least else None,
            required=False,
            num_measured=len(flags),
        )
        for name, (flags, bound) in found.items()
    )


def _other_rows(m: Measurements) -> tuple[GateRow, ...]:
    """Return what became of the edits' own prompts about other subjects; single edits are judged by it."""
    others = [other for score in m.edits for other in score.other_subjects]
    found = {
        "other_subjects_unchanged": share(other.is_unchanged for other in others),
        "other_subjects_taken": share(other.takes_answer for other in others),
        "other_subjects_kl": mean(other.kl for other in others),
    }
    return tuple(
        _row(name, value, None, against="parent", required=False, num_measured=len(others))
        for name, value in found.items()
    )


def _same_subject_rows(m: Measurements) -> tuple[GateRow, ...]:
    """Return how many active facts about the edits' own subjects are lost; single edits are judged by it."""
    facts = {one.edit_id: one.holds for score in m.edits for one in score.same_subject}
    if not facts:
        return ()
    lost = share(not holds for holds in facts.values())
    return (_row("same_subject_lost", lost, None, against="parent", required=False, num_measured=len(facts)),)


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
    bound: float | None,
    *,
    is_most: bool = False,
    is_floor: bool = False,
    reference: float | None = None,
    against: str = "policy",
    required: bool = True,
    num_measured: int | None = None,
) -> GateRow:
    """Hold a value against the least it may be, or the most (`is_most`); missing a floor saturates the lineage.

    Without a bound it is only reported.
    """
    if value is None:
        verdict = Verdict.not_measured
    elif bound is None:
        verdict = Verdict.reported
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
        num_measured=num_measured,
        is_most=is_most,
    )


def _reported(row: GateRow) -> GateRow:
    is_measured = row.verdict is not Verdict.not_measured
    return replace(row, threshold=None, verdict=Verdict.reported) if is_measured else row


def _edit_verdict(policy: GatePolicy, score: EditScore, request: EditRequest | None) -> EditVerdict:
    reason = refusal(policy, score, request)
    return EditVerdict(edit_id=score.edit_id, passed=reason is None, reason=reason or praise(score))


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
        policy=policy,
    )
