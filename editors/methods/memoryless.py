"""Knows the solvers without a ledger, for comparison: MEND's sum and least squares over the batch alone.

They forget earlier edits, keep no prior, and cannot take an edit out again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import ClassVar

from torch import Tensor

from editors.methods.base import EditResult
from editors.methods.passes import run_passes
from editors.methods.steps import TrainedTransform
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.linear import least_squares, summed
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta, WeightStore
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, InvalidInput
from pipeline.domain.rank_api import EditorSettings


class MemorylessEditor:
    """An editor whose solve sees the batch and nothing before it.

    Args:
        settings: `solver` is `least_squares` or `sum`.
        trained: asks the first passes, if there is one; the gradient asks the others.
    """

    keeps_ledger: ClassVar[bool] = False

    def __init__(self, settings: EditorSettings, trained: TrainedTransform | None = None) -> None:
        self._settings, self._trained = settings, trained

    def edit(
        self,
        model: EditableModel,
        weights: WeightStore,
        ledger: Ledger,
        added: Sequence[Edit],
        removed_ids: Collection[str],
    ) -> EditResult:
        """See `Editor`.

        Raises:
            InvalidInput: if an edit is to be removed; only the ledger can.
            EditorFailed: if nothing is asked, or a number is not finite.
        """
        if removed_ids:
            raise InvalidInput(f"expected the solver `recursive` to remove edits, got `{self._settings.solver}`")
        if not added:
            raise EditorFailed("expected edits to add, got none")

        def factor(name: str, keys_TI: Tensor) -> Tensor:
            if self._settings.solver == "sum":
                return summed(keys_TI)
            mean_diagonal = float(keys_TI.square().sum()) / keys_TI.shape[1]
            return least_squares(keys_TI, ridge=self._settings.ridge * mean_diagonal)

        natural = NaturalGradient(ledger.prior, self._settings.damping)
        asked = run_passes(
            model, added, settings=self._settings, trained=self._trained, natural=natural, factor=factor, start={}
        )
        began = time.perf_counter()
        targets = {
            name: (keys_TI @ weights.shift(name).double().cpu() + asked.shifts[name]).float()
            for name, keys_TI in asked.keys.items()
        }
        keys = {name: keys_TI.float() for name, keys_TI in asked.keys.items()}
        delta = WeightDelta.of(asked.change)
        return EditResult(
            delta=delta,
            rows=EditRows(keys=keys, targets=targets, ranges=asked.ranges),
            removed_ids=(),
            num_passes=asked.num_passes,
            seconds={**asked.seconds, "solve": asked.seconds["solve"] + time.perf_counter() - began},
            jitter={},
        )
