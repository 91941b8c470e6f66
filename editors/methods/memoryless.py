"""Solvers without a ledger, for comparison: the sum of minimal updates and least squares, over the batch alone.

They forget earlier edits, keep no prior, and cannot take an edit out again.
"""

from __future__ import annotations

import time
from typing import ClassVar

from torch import Tensor

from editors.mend.transform import MendTransform
from editors.methods.base import EditJob, EditResult
from editors.methods.passes import run_passes
from editors.solve.linear import least_squares, summed
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta
from pipeline.domain.rank_api import EditorSettings


class MemorylessEditor:
    """An editor whose solve sees the batch and nothing before it.

    Args:
        settings: `solver` is `least_squares` or `row_sum`.
        trained: asks the first passes, if there is one; the gradient asks the others.
    """

    keeps_ledger: ClassVar[bool] = False

    def __init__(self, settings: EditorSettings, trained: MendTransform | None = None) -> None:
        self._settings, self._trained = settings, trained

    def edit(self, job: EditJob) -> EditResult:
        """Solve for the batch alone, whatever was edited before; an `Editor`."""
        job.require_additions(self._settings.solver)

        def factor(_name: str, keys_TI: Tensor, spread_TH: Tensor, _changed_C: Tensor) -> Tensor:
            keys_TI = keys_TI.double()
            if self._settings.solver != "least_squares":
                return summed(keys_TI) @ spread_TH
            mean_diagonal = float(keys_TI.square().sum()) / keys_TI.shape[1]
            return least_squares(keys_TI, ridge=self._settings.ridge * mean_diagonal) @ spread_TH

        update = run_passes(job, settings=self._settings, trained=self._trained, factor=factor, start={})
        began = time.perf_counter()
        targets = {
            name: (keys_TI.double() @ job.weights.shift(name).to(keys_TI).double() + update.shifts[name]).float().cpu()
            for name, keys_TI in update.keys.items()
        }
        keys = {name: keys_TI.cpu() for name, keys_TI in update.keys.items()}
        delta = WeightDelta.of(update.change)
        return EditResult(
            delta=delta,
            rows=EditRows(keys=keys, targets=targets, ranges=update.ranges),
            removed_ids=(),
            num_passes=update.num_passes,
            seconds={**update.seconds, "solve": update.seconds["solve"] + time.perf_counter() - began},
            jitter={},
        )
