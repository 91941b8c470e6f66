"""Knows the recursive solve: edits enter and leave through the ledger, which defines the weights.

With A' and S' the ledger's matrix and shift after the removed rows have left, and K, R what the batch asks:

    removal   S' - S_parent = A'^-1 K_rem^T (K_rem S_parent - Y_rem)
    addition  S_new - S'    = (A' + K^T K)^-1 K^T R,        rows of the batch: K, Y = K S' + R

Both are of low rank, and with the rows taken in, `S_new = A_new^-1 B_new` holds whenever it held for the parent.
A superseded fact's rows leave first, so a correction starts from a model that never heard of it.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from editors.methods.base import EditResult
from editors.methods.passes import BatchUpdate, joined, run_passes
from editors.methods.steps import TrainedTransform
from editors.models.comm import agreed, own_share, together
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger, Matrices
from editors.solve.linear import added_rows
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.prior import Prior
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta, WeightStore
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, Misconfigured
from pipeline.domain.rank_api import EditorSettings


class RecursiveEditor:
    """The editor of a stream: the memory of every active edit and a preservation prior are in each solve.

    Args:
        settings: constants of the lineage.
        trained: asks the first passes, if there is one; the gradient asks the others.
    """

    keeps_ledger: ClassVar[bool] = True

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
        """See `Editor`. Parameters and ledger on exit equal those on entry; `ledger.commit` takes the result in.

        Raises:
            EditorFailed: if nothing is asked, a matrix is not positive definite, or a number is not finite.
            UnknownRecord: for a removed edit that has no rows.
        """
        if not added and not removed_ids:
            raise EditorFailed("expected edits to add or to remove, got neither")
        agreed(model.comm, lambda: _check_names(model, ledger))
        began = time.perf_counter()
        remaining = ledger.without(removed_ids)
        removal = _removal(model, weights, ledger, remaining, removed_ids) if removed_ids else {}
        prepared = time.perf_counter() - began
        asked = self._ask(model, ledger.prior, remaining, added, removal) if added else None
        began = time.perf_counter()
        rows = _rows(model, weights, asked, removal)
        factors = dict(removal)
        if asked is not None:
            factors = {name: joined(removal.get(name), change) for name, change in asked.change.items()}
        seconds = dict(asked.seconds) if asked else {"capture": 0.0, "solve": 0.0}
        result = EditResult(
            delta=WeightDelta.of(factors),
            rows=rows,
            removed_ids=tuple(removed_ids),
            num_passes=asked.num_passes if asked else 0,
            seconds=seconds,
            jitter=together(model.comm, lambda: remaining.jitter),
        )
        seconds["solve"] += prepared + time.perf_counter() - began
        return result

    def _ask(
        self,
        model: EditableModel,
        prior: Prior,
        remaining: Matrices,
        added: Sequence[Edit],
        removal: dict[str, tuple[Tensor, Tensor]],
    ) -> BatchUpdate:
        def factor(name: str, keys_TI: Tensor) -> Tensor:
            return added_rows(remaining.factor(name), keys_TI)

        natural = NaturalGradient(prior, self._settings.damping)
        return run_passes(
            model,
            added,
            settings=self._settings,
            trained=self._trained,
            natural=natural,
            factor=factor,
            start=removal,
        )


def _removal(
    model: EditableModel, weights: WeightStore, ledger: Ledger, remaining: Matrices, removed_ids: Collection[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of S' - S_parent by inner parameter, fp64; each rank solves for a share of them."""
    own, excess = set(own_share(model.comm, model.inner_param_names)), {}
    for name in model.inner_param_names:
        shift_IO = weights.shift(name)  # of one weight at a time, and every rank has to ask
        if name in own:
            keys_TI, targets_TO = ledger.rows_of(name, removed_ids)
            excess[name] = (keys_TI, keys_TI @ shift_IO.double().cpu() - targets_TO)

    def solved() -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: (remaining.factor(name).solve(keys_TI.T) if len(keys_TI) else keys_TI.T, excess_TO)
            for name, (keys_TI, excess_TO) in excess.items()
        }

    return together(model.comm, solved)


def _rows(
    model: EditableModel,
    weights: WeightStore,
    asked: BatchUpdate | None,
    removal: dict[str, tuple[Tensor, Tensor]],
) -> EditRows:
    """The batch's rows with absolute targets, `Y = K S' + R`; rows of nothing in a pure removal."""
    keys, targets = {}, {}
    for param in model.inner:
        name = param.name
        if asked is None:
            keys[name] = torch.zeros(0, param.in_features)
            targets[name] = torch.zeros(0, param.out_features)
            continue
        keys_TI = asked.keys[name]
        held_TO = keys_TI @ weights.shift(name).double().cpu()
        if name in removal:
            held_TO = held_TO + (keys_TI @ removal[name][0]) @ removal[name][1]
        keys[name] = keys_TI.float()
        targets[name] = (held_TO + asked.shifts[name]).float()
    return EditRows(keys=keys, targets=targets, ranges=asked.ranges if asked else dict.fromkeys(keys, ()))


def _check_names(model: EditableModel, ledger: Ledger) -> None:
    if missing := set(own_share(model.comm, model.inner_param_names)) - set(ledger.prior.moments):
        raise Misconfigured(f"expected a prior of inner parameter {min(missing)}, got one without it")
