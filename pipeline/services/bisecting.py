"""Finds the edits of a failing batch that are to blame. It is told how to try some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.domain.batches import halves, most_trials
from pipeline.domain.edits import Edit
from pipeline.domain.gates import GateReport, Verdict
from pipeline.domain.rank_api import Candidate
from pipeline.domain.reasons import refusal_by_report


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One composition that was tried on the parent, and how it was judged."""

    candidate: Candidate
    """What was tried; its id is the one under which the group keeps the result."""
    report: GateReport
    """The verdict and its figures."""
    seconds: Mapping[str, float]
    """Wall time of each phase; none where nothing could be measured."""
    prior_strength: float | None = None
    """The prior's strength from then on, where the ledger was solved anew."""

    @property
    def was_measured(self) -> bool:
        """Whether the group holds a result of it."""
        return bool(self.seconds)


Try = Callable[[tuple[Edit, ...], Attempt | None], Attempt]
"""(edits, the refused attempt whose unblamed edits they are or None) -> how they were judged."""


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
    suspects: tuple[Edit, ...]
    """Edits without which the accepted ones pass: they are to be tried on top of those, few at a time."""
    untried: tuple[Edit, ...]
    """Edits that nothing speaks against, and all that are left where the lineage is saturated."""
    undecided: tuple[Edit, ...]
    """Edits that were not decided within the bound of trials."""
    saturated: GateReport | None
    """The report that breached a floor; then nobody is to blame."""
    num_trials: int
    """Compositions that were tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Edits that are still to be tried, and whether a report blamed each of them."""

    edits: tuple[Edit, ...]
    is_blamed: bool = False
    rest_of: Attempt | None = None
    """The attempt of which these are what no report blames; None for edits that are to be edited anew."""


@dataclass(slots=True)
class _Sifting:
    attempt: Try
    parts: list[_Part]
    """What is still to be tried, the next one last."""
    accepted: tuple[Edit, ...] = ()
    kept: Attempt | None = None
    offenders: list[Offender] = field(default_factory=list)
    saturated: GateReport | None = None
    num_trials: int = 0

    @property
    def is_over(self) -> bool:
        return not self.parts or self.kept is not None or self.saturated is not None

    def try_next(self) -> None:
        part = self.parts.pop()
        # An edit by itself is edited anew: it may be refused for good.
        result = self.attempt(part.edits, part.rest_of if len(part.edits) > 1 else None)
        self.num_trials += 1
        if result.report.passed:
            self.accepted, self.kept = part.edits, result
        elif result.report.verdict is Verdict.saturated:
            self.saturated = result.report
            self.parts.append(part)
        elif len(part.edits) == 1:
            self.offenders.append(_offender(part.edits[0], result.report))
            self._rejoin()
        else:
            self.parts += _split(part.edits, result)

    def _rejoin(self) -> None:
        """Put together again what was tried only with an edit that fails by itself: that explains its failures."""
        blamed = [part for part in self.parts if part.is_blamed]
        others = [edit for part in reversed(self.parts) if not part.is_blamed for edit in part.edits]
        self.parts = [*blamed, *([_Part(edits=tuple(others))] if others else [])]

    def suspects(self) -> tuple[Edit, ...]:
        """Return what a report blamed, and what was split off last from what passed."""
        last = len(self.parts) - 1
        found = [part.edits for place, part in enumerate(self.parts) if part.is_blamed or place == last]
        return tuple(edit for edits in found for edit in edits)


def sift(edits: Sequence[Edit], attempt: Try) -> Sifted:
    """Take edits out of a batch until the others pass together, none is left, or the bound of trials is reached.

    Where a report blames single edits, the others are tried without them; otherwise the first half is. The first part
    that passes ends it, so that it can be committed: what was taken out is tried on top of that as a batch of its own,
    and the edits that passed are not edited again for each of those that do not.

    Args:
        edits: the batch.
        attempt: edits the parent with a composition and judges it; called at most
            `most_trials(len(edits))` times, never twice with the same edits. Of what is left of an attempt that was
            refused for single edits it is given that attempt.
    """
    state = _Sifting(attempt=attempt, parts=[_Part(edits=tuple(edits))])
    while not state.is_over and state.num_trials < most_trials(len(edits)):
        state.try_next()
    left = tuple(edit for part in state.parts for edit in part.edits)
    suspects = state.suspects() if state.kept is not None else ()
    return Sifted(
        accepted=state.accepted,
        kept=state.kept,
        offenders=tuple(state.offenders),
        suspects=suspects,
        untried=tuple(edit for edit in left if edit not in suspects) if state.is_over else (),
        undecided=() if state.is_over else left,
        saturated=state.saturated,
        num_trials=state.num_trials,
    )


def _split(edits: tuple[Edit, ...], refused: Attempt) -> tuple[_Part, _Part]:
    """Return what looks guilty, and what is to be tried without it."""
    report = refused.report
    innocent = tuple(edit for edit in edits if edit.edit_id not in report.offenders)
    blamed = tuple(edit for edit in edits if edit.edit_id in report.offenders)
    if innocent and blamed:
        return _Part(edits=blamed, is_blamed=True), _Part(edits=innocent, rest_of=refused)
    first, second = halves(edits)
    return _Part(edits=second), _Part(edits=first)


def _offender(edit: Edit, report: GateReport) -> Offender:
    return Offender(edit=edit, reason=refusal_by_report(report, edit.edit_id, edit.request), report=report)
