"""Knows the figures of a model in the middle of a stream: averages over its active edits, and what time did to them.

`retention` is the `edit_success` of the active edits that are older than the last batch; `retention_first_batch` that
of the first batch, `retention_first_tenth` that of the first tenth of the edits so far, and `retention_deciles` of each
tenth of them, oldest first. `drawdown` is the perplexity of plain text over the base's, minus 1; `fluency` that of
continuations of some prompts of the stream, whether their edits have come already or not (see `fluency`).
A stream that has become long is measured on a sample of its active edits, one from each of as many equal ages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from editors.evaluation.edit_metrics import EditFigures, averaged
from editors.evaluation.probes import EditProbes
from pipeline.domain.batches import stratified_sample
from pipeline.domain.edits import Edit
from pipeline.domain.measurements import share

NUM_AGES = 10
"""Parts of a stream, by age, whose retention is told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSizes:
    """How many active edits are asked at a checkpoint; each sample is part of the one before it."""

    forced: int | None
    """Teacher-forced; all if None."""
    preferring: int
    """Whose targets are compared with the true ones."""
    free: int
    """BatchUpdate freely."""

    def chosen(self, active: Sequence[Edit], *, seed: str) -> tuple[tuple[Edit, ...], set[str], set[str]]:
        """The edits to ask, oldest first; of these, the ids of those to compare and of those to ask freely."""
        asked = tuple(active) if self.forced is None else stratified_sample(active, seed=seed, size=self.forced)
        compared = stratified_sample(asked, seed=f"{seed} preferring", size=self.preferring)
        free = stratified_sample(compared, seed=f"{seed} free", size=self.free)
        return asked, {edit.edit_id for edit in compared}, {edit.edit_id for edit in free}


def stream_figures(
    probes: EditProbes, history: Sequence[Sequence[Edit]], active: Sequence[Edit], *, sizes: SampleSizes, seed: str
) -> dict[str, Any]:
    """The figures of the model as it is now.

    Args:
        probes: ask the model.
        history: the batches that were applied, in order.
        active: the edits that should hold, oldest first.
        sizes: how many of them are asked.
        seed: of the samples.
    """
    asked, preferring, free = sizes.chosen(active, seed=seed)
    figures = probes.ask(asked, preferring=preferring, free=free)
    in_sample = {edit.edit_id for edit in asked}
    missing = {edit.edit_id for edit in history[0]} - in_sample
    first = [edit for edit in active if edit.edit_id in missing]
    text = {"drawdown": probes.drawdown(), "fluency": probes.fluency_of(probes.continued)}
    return averaged(figures) | retention(figures, probes.ask(first), history) | text


def retention(
    figures: Sequence[EditFigures], others: Sequence[EditFigures], history: Sequence[Sequence[Edit]]
) -> dict[str, Any]:
    """How edits of different ages hold.

    Args:
        figures: of the sample.
        others: of edits of the first batch that are not in the sample.
        history: the batches that were applied, in order.
    """
    order = [edit.edit_id for batch in history for edit in batch]
    bounds = [-(-len(order) * age // NUM_AGES) for age in range(NUM_AGES + 1)]  # the first tenth of few is one edit
    ages = [set(order[low:high]) for low, high in pairwise(bounds)]
    deciles = [_success(figures, age) for age in ages]
    last, first = ({edit.edit_id for edit in history[place]} for place in (-1, 0))
    return {
        "retention": _success(figures, set(order) - last),
        "retention_first_batch": _success([*figures, *others], first),
        "retention_first_tenth": deciles[0],
        "retention_deciles": deciles,
    }


def _success(figures: Sequence[EditFigures], edit_ids: Collection[str]) -> float | None:
    return share(item.own.is_success for item in figures if item.edit_id in edit_ids)
