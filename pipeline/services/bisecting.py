"""Finds the edits of a failing batch that are to blame. It is told how to try some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.domain.batches import halves, most_trials
from pipeline.domain.edits import Edit
from pipeline.domain.gates import GateReport, Verdict
from pipeline.domain.reasons import refusal_by_report


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One composition that was tried on the parent, and how it was judged."""

    candidate_id: str
    """Under which the group keeps the result."""
    report: GateReport
    """The verdict and its figures."""
    seconds: Mapping[str, float]
    """Wall time of each phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offender:
    """An edit that fails on top of what was accepted."""

    edit: Edit
    """The edit to reject."""
    reason: str
    """What was measured."""
    report: GateReport
    """The report that shows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sifted:
    """What became of a batch."""

    accepted: tuple[Edit, ...]
    """Edits that pass together."""
    kept: Attempt | None
    """The attempt with exactly the accepted edits; None if there are none."""
    offenders: tuple[Offender, ...]
    """Edits to reject."""
    left: tuple[Edit, ...]
    """Edits that were not decided within the bound of trials, or that met a saturated lineage."""
    saturated: GateReport | None
    """The report that breached a floor; then nobody is to blame."""
    num_trials: int
    """Compositions that were tried."""


@dataclass(slots=True)
class _Sifting:
    attempt: Callable[[tuple[Edit, ...]], Attempt]
    budget: int
    accepted: tuple[Edit, ...] = ()
    kept: Attempt | None = None
    offenders: list[Offender] = field(default_factory=list)
    left: list[Edit] = field(default_factory=list)
    saturated: GateReport | None = None
    tried: dict[frozenset[str], Attempt] = field(default_factory=dict)

    def sift(self, edits: tuple[Edit, ...]) -> None:
        if not edits:
            return
        if self.saturated is not None or not self._may_try(edits):
            self.left.extend(edits)
            return
        result = self._try(edits)
        if result.report.passed:
            self.accepted, self.kept = self.accepted + edits, result
        elif result.report.verdict is Verdict.saturated:
            self.saturated = result.report
            self.left.extend(edits)
        elif len(edits) == 1:
            self.offenders.append(_offender(edits[0], result.report))
        else:
            first, second = _split(edits, result.report)
            self.sift(first)
            self.sift(second)

    def _may_try(self, edits: tuple[Edit, ...]) -> bool:
        return self._key(edits) in self.tried or len(self.tried) < self.budget

    def _try(self, edits: tuple[Edit, ...]) -> Attempt:
        key = self._key(edits)
        if key not in self.tried:
            self.tried[key] = self.attempt(self.accepted + edits)
        return self.tried[key]

    def _key(self, edits: tuple[Edit, ...]) -> frozenset[str]:
        return frozenset(edit.edit_id for edit in self.accepted + edits)


def sift(edits: Sequence[Edit], attempt: Callable[[tuple[Edit, ...]], Attempt]) -> Sifted:
    """Bisect a batch until every edit passes, is rejected, or the bound of trials is reached.

    The part that looks innocent is tried first, the rest on top of what was accepted of it. Where a report
    already blames single edits those are set apart; otherwise the batch is halved.

    Args:
        edits: the batch.
        attempt: edits the parent with a composition and judges it; called at most
            `most_trials(len(edits))` times, never twice with the same edits.
    """
    state = _Sifting(attempt=attempt, budget=most_trials(len(edits)))
    state.sift(tuple(edits))
    return Sifted(
        accepted=state.accepted,
        kept=state.kept,
        offenders=tuple(state.offenders),
        left=tuple(state.left),
        saturated=state.saturated,
        num_trials=len(state.tried),
    )


def _split(edits: tuple[Edit, ...], report: GateReport) -> tuple[tuple[Edit, ...], tuple[Edit, ...]]:
    innocent = tuple(edit for edit in edits if edit.edit_id not in report.offenders)
    suspects = tuple(edit for edit in edits if edit.edit_id in report.offenders)
    return (innocent, suspects) if innocent and suspects else halves(edits)


def _offender(edit: Edit, report: GateReport) -> Offender:
    return Offender(edit=edit, reason=refusal_by_report(report, edit.edit_id, edit.request), report=report)
