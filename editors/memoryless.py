"""Knows the solvers without a ledger, for comparison: MEND's sum and least squares over the batch alone.

They forget earlier edits, keep no prior, and cannot take an edit out again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from torch import Tensor

from editors.base import EditResult
from editors.deltas import WeightDelta, WeightStore
from editors.families import CausalModel
from editors.ledger import Ledger
from editors.passes import run_passes
from editors.rows import EditRows
from editors.solve import least_squares, summed
from editors.transform import GradientTransform, Transform
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, InvalidInput
from pipeline.domain.trials import EditorSettings


class MemorylessEditor:
    """An editor whose solve sees the batch and nothing before it.

    Args:
        settings: `solver` is `least_squares` or `sum`.
        transform: where the wanted shifts come from; the plain gradient by default.
    """

    def __init__(self, settings: EditorSettings, transform: Transform | None = None) -> None:
        self._settings = settings
        self._transform = transform or GradientTransform(step=settings.step, rest=settings.rest)

    def edit(
        self,
        model: CausalModel,
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
        ridge = dict(ledger.ridge)

        def factor(name: str, keys_TI: Tensor) -> Tensor:
            mean_diagonal = float(keys_TI.square().sum()) / keys_TI.shape[1]
            ridge.setdefault(name, self._settings.ridge * mean_diagonal)
            is_sum = self._settings.solver == "sum"
            return summed(keys_TI) if is_sum else least_squares(keys_TI, ridge=ridge[name])

        asked = run_passes(
            model,
            added,
            transform=self._transform,
            factor=factor,
            start={},
            num_passes=self._settings.num_passes,
            rest=self._settings.rest,
        )
        began = time.perf_counter()
        targets = {
            name: (keys_TI @ weights.shift(name).double().cpu() + asked.shifts[name]).float()
            for name, keys_TI in asked.keys.items()
        }
        keys = {name: keys_TI.float() for name, keys_TI in asked.keys.items()}
        delta = WeightDelta.of({name: (asked.factors[name], asked.shifts[name]) for name in asked.keys})
        return EditResult(
            delta=delta,
            rows=EditRows(keys=keys, targets=targets, ranges=asked.ranges, ridge=ridge),
            removed_ids=(),
            num_passes=asked.num_passes,
            seconds={**asked.seconds, "solve": asked.seconds["solve"] + time.perf_counter() - began},
            jitter={},
        )
