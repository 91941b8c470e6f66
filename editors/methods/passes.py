"""Passes over a batch of edits, each on the candidate that the pass before gave.

A pass captures keys and gradients, lets a transform say which shift is still wanted, adds it to what the batch has
asked so far and solves again:

    R <- R + D(K, G)        S = S' + F R        K, G at the candidate S, F from the solver

The rows of a pass replace those of the pass before: rows of all passes would make the memory as many times too stiff.
The candidate is a side branch: no weight is written. Inner parameters whose rows are subject tokens are asked first:
there one row serves every way of asking for the fact. The others, whose rows are answer tokens, get what is still
wanted then, and edits without a subject. Ranks that hold the model together read a share of the edits and solve for a
share of the inner parameters each.

Legend: T edit rows, E edits, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editors.mend.transform import MendTransform
from editors.methods.base import EditJob
from editors.methods.edit_reading import (
    EditSequences,
    Group,
    Reading,
    edit_sequences,
    read,
    read_least,
    rows_of_edits,
)
from editors.methods.steps import GradientTransform, Transform
from editors.models.comm import own_share, together
from editors.models.families import EditableModel
from editors.models.hooks import Branch, side_branch
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.rows import Ranges, consecutive
from pipeline.domain.edits import Edit
from pipeline.domain.rank_api import EditorSettings

Factor = Callable[[str, Tensor], Tensor]
"""(inner parameter, K T x I) -> F (I x T): the solver's update for shifts D is `F D`; fp64."""
Factors = dict[str, tuple[Tensor, Tensor]]
"""Inner parameter -> (F I x R, D R x O), fp64: a change."""


@dataclass(kw_only=True, slots=True)
class BatchUpdate:
    """What a batch asks of each inner parameter, and what the solver makes of it."""

    keys: dict[str, Tensor]
    """Inner parameter -> K (T x I), fp64 on the CPU: of each row at the candidate of the last pass that asked there."""
    shifts: dict[str, Tensor]
    """Inner parameter -> R (T x O), fp64: summed over the passes."""
    factors: dict[str, Tensor]
    """Inner parameter -> F (I x T), fp64."""
    ranges: dict[str, Ranges]
    """Inner parameter -> rows of each edit."""
    num_passes: int = 0
    """Passes made, both groups together."""
    seconds: dict[str, float] = field(default_factory=lambda: {"capture": 0.0, "solve": 0.0})
    """Wall time of `capture` and `solve`."""

    @property
    def change(self) -> Factors:
        """The change of the weights: F and R as factors."""
        return {name: (self.factors[name], self.shifts[name]) for name in self.keys}


def run_passes(
    job: EditJob, *, settings: EditorSettings, trained: MendTransform | None, factor: Factor, start: Factors
) -> BatchUpdate:
    """Ask until every target token is probable enough, or the passes are used up.

    Args:
        job: adds at least one edit.
        settings: which weights, which tokens, how many passes, and when an edit is left alone.
        trained: asks the first `settings.trained_passes` of each group; the gradient asks the others.
        factor: the solver.
        start: a change that the candidate has before the first pass, such as what the removed edits leave behind.

    Raises:
        EditorFailed: if a probability is not finite.
    """
    natural = NaturalGradient(job.ledger.prior, settings.damping)
    passes = _Passes(job.model, settings, trained, natural, factor, start)
    groups = _groups(job.model, settings)
    pending = list(job.added)
    for place, group in enumerate(groups):
        passes.ask(pending, group)
        if place + 1 < len(groups):
            pending = passes.unfinished(pending)
        if not pending:
            break
    return passes.update


def joined(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the factors of the sum of two low-rank changes: side by side, `[F1 F2]` and `[D1; D2]`."""
    if first is None:
        return second
    return torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]])


class _Passes:
    """The passes over one batch; what it has asked so far is in `update`."""

    def __init__(
        self,
        model: EditableModel,
        settings: EditorSettings,
        trained: MendTransform | None,
        natural: NaturalGradient,
        factor: Factor,
        start: Factors,
    ) -> None:
        self._model, self._settings, self._trained, self._natural = model, settings, trained, natural
        self._factor, self._start = factor, start
        self.update = _empty(model)

    def ask(self, edits: Sequence[Edit], group: Group) -> None:
        """Make the passes of one group; an edit that is probable enough is not looked at again.

        The first pass takes the keys of all edits: those that are probable already ask nothing, and the solve holds
        them where they are.

        Args:
            edits: all of them get rows, if they have such tokens.
            group: the inner parameters.
        """
        lengths = rows_of_edits(self._model, edits, group, self._settings.rephrase_rows)
        rows = self._opened(edits, group, lengths)
        awake = [place for place in range(len(edits)) if any(of_edit[place] for of_edit in rows.values())]
        if not awake:
            return
        sequences = self._sequences([edits[place] for place in awake], group)
        for made in range(self._settings.num_passes):
            began = time.perf_counter()
            reading = read(self._model, sequences, self._branches())
            captured = time.perf_counter()
            self.update.seconds["capture"] += captured - began
            up_E = reading.least_E < self._settings.stop_probability
            if made and not bool(up_E.any()):
                return
            indices = {
                name: torch.tensor([row for place in awake for row in of_edit[place]], dtype=torch.long)
                for name, of_edit in rows.items()
            }
            self._take(indices, reading, self._transform(group, made))
            self.update.num_passes += 1
            self.update.seconds["solve"] += time.perf_counter() - captured
            if not bool(up_E.any()):
                return
            if not bool(up_E.all()):
                awake = [place for place, is_up in zip(awake, up_E.tolist(), strict=True) if is_up]
                sequences = self._sequences([edits[place] for place in awake], group)

    def unfinished(self, edits: Sequence[Edit]) -> list[Edit]:
        """Return the edits that are not probable enough at the candidate, and those that have no row yet."""
        began = time.perf_counter()
        least_E = read_least(self._model, edits, self._settings.rephrase_rows, self._branches())
        self.update.seconds["capture"] += time.perf_counter() - began
        has_rows = {edit_id for ranges in self.update.ranges.values() for edit_id, first, end in ranges if end > first}
        return [
            edit
            for edit, least in zip(edits, least_E.tolist(), strict=True)
            if least < self._settings.stop_probability or edit.edit_id not in has_rows
        ]

    def _sequences(self, edits: Sequence[Edit], group: Group) -> EditSequences:
        began = time.perf_counter()
        with side_branch(self._model.module, self._branches()):
            found = edit_sequences(self._model, edits, group, self._settings.rephrase_rows)
        self.update.seconds["capture"] += time.perf_counter() - began
        return found

    def _opened(
        self, edits: Sequence[Edit], group: Group, lengths: Mapping[str, Sequence[int]]
    ) -> dict[str, list[range]]:
        """Make room for the rows of a group; return the rows of each edit by inner parameter."""
        rows = {}
        for param in group.params:
            name = param.name
            ranges = consecutive([(edit.edit_id, n) for edit, n in zip(edits, lengths[name], strict=True)])
            self.update.ranges[name] = ranges
            self.update.keys[name] = torch.zeros(sum(lengths[name]), param.in_features, dtype=torch.float64)
            self.update.shifts[name] = torch.zeros(sum(lengths[name]), param.out_features, dtype=torch.float64)
            self.update.factors[name] = torch.zeros(param.in_features, sum(lengths[name]), dtype=torch.float64)
            rows[name] = [range(first, end) for _, first, end in ranges]
        return rows

    def _take(self, indices: Mapping[str, Tensor], reading: Reading, transform: Transform) -> None:
        """Add what some rows of each inner parameter still want to what is asked, and solve again."""
        taken = {name: index_T for name, index_T in indices.items() if len(index_T)}
        for name, index_T in taken.items():
            self.update.keys[name][index_T] = reading.u_TI[name].double().cpu()

        def solved() -> dict[str, tuple[Tensor, Tensor]]:
            own = own_share(self._model.comm, self._model.inner_param_names)
            return {name: self._solved(name, reading, transform) for name in own if name in taken}

        for name, (wanted_TO, factor_IT) in together(self._model.comm, solved).items():
            self.update.shifts[name][taken[name]] += wanted_TO
            self.update.factors[name] = factor_IT

    def _solved(self, name: str, reading: Reading, transform: Transform) -> tuple[Tensor, Tensor]:
        """Return what the rows of the awake edits want more, and the factor over all rows of the inner parameter."""
        wanted_TO = transform(
            name=name,
            u_TI=reading.u_TI[name],
            delta_TO=self._natural(name, reading.delta_TO[name]),
            probability_T=reading.probability_T[name],
        )
        return wanted_TO.double().cpu(), self._factor(name, self.update.keys[name])

    def _transform(self, group: Group, made: int) -> Transform:
        """Return the trained transform, in its passes and where it knows the whole group; else the gradient's."""
        trained = self._trained if made < self._settings.trained_passes else None
        if trained is not None and {param.name for param in group.params} <= set(trained.names):
            return trained
        return GradientTransform(step=self._settings.step, stop_probability=self._settings.stop_probability)

    def _branches(self) -> dict[str, Branch]:
        """Return the candidate as side branches: what the job starts with and what the batch has asked so far."""
        change = {name: joined(self._start.get(name), factors) for name, factors in self.update.change.items()}
        return {
            name: (left.float().to(self._model.device), right.float().to(self._model.device))
            for name, (left, right) in change.items()
            if left.shape[1]
        }


def _empty(model: EditableModel) -> BatchUpdate:
    update = BatchUpdate(keys={}, shifts={}, factors={}, ranges={})
    for param in model.inner:
        update.keys[param.name] = torch.zeros(0, param.in_features, dtype=torch.float64)
        update.shifts[param.name] = torch.zeros(0, param.out_features, dtype=torch.float64)
        update.factors[param.name] = torch.zeros(param.in_features, 0, dtype=torch.float64)
        update.ranges[param.name] = ()
    return update


def _groups(model: EditableModel, settings: EditorSettings) -> list[Group]:
    of_subject = set(settings.subject_params)
    subject = tuple(param for param in model.inner if param.name in of_subject)
    answer = tuple(param for param in model.inner if param.name not in of_subject)
    groups = [Group(params=subject, kind="subject"), Group(params=answer, kind="answer")]
    return [group for group in groups if group.params]
