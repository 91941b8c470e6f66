"""The recursive solve: edits enter and leave through the ledger, which defines the weights.

With A' and S' the ledger's matrix and shift after the removed rows have left, and K, R what the batch asks:

    removal   S' - S_parent = A'^-1 K_rem^T (K_rem S_parent - Y_rem)
    addition  S_new - S'    = (A' + K^T K)^-1 K^T R,        rows of the batch: K, Y = K S' + R

Both are of low rank, and with the rows taken in, `S_new = A_new^-1 B_new` holds whenever it held for the parent.
A superseded fact's rows leave first, so a correction starts from a model that never heard of it.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor

from editors.mend.transform import MendTransform
from editors.methods.base import EditJob, EditResult
from editors.methods.batch_update import BatchUpdate, Factors, joined
from editors.methods.leaving_out import leaving
from editors.methods.passes import run_passes
from editors.models.comm import agreed, own_share, together
from editors.solve.ledger import Matrices
from editors.solve.linear import AddedRows
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.packing import Packed
from editors.solve.rows import EditRows
from editors.solve.shared_targets import KEY_BITS, SharedTargets, held_harder
from editors.weights.deltas import WeightDelta
from pipeline.domain.errors import EditorFailed, Misconfigured
from pipeline.domain.rank_api import EditorSettings


class RecursiveEditor:
    """The editor of a stream: the memory of every active edit and a preservation prior are in each solve.

    Args:
        settings: constants of the lineage.
        trained: asks the first passes, if there is one; the gradient asks the others.
    """

    keeps_ledger: ClassVar[bool] = True

    def __init__(self, settings: EditorSettings, trained: MendTransform | None = None) -> None:
        self._settings, self._trained = settings, trained
        self._natural: NaturalGradient | None = None

    def edit(self, job: EditJob) -> EditResult:
        """Solve for the batch and for every edit that the ledger holds; an `Editor`.

        Parameters and ledger on exit equal those on entry; `ledger.commit` takes the result in.

        Raises:
            EditorFailed: if nothing is asked, a matrix is not positive definite, or a number is not finite.
            UnknownRecord: for a removed edit that has no rows.
        """
        model = job.model
        if not job.added and not job.removed_ids:
            raise EditorFailed("expected edits to add or to remove, got neither")
        agreed(model.comm, lambda: _check_names(job))
        began = time.perf_counter()
        remaining = job.ledger.without(job.removed_ids)
        removal: Factors = {}
        if job.removed_ids:
            removal = leaving(job, lambda name: job.ledger.rows_of(name, job.removed_ids), remaining.factor)
        prepared = time.perf_counter() - began
        update = self._ask(job, remaining, removal) if job.added else None
        began = time.perf_counter()
        rows = _rows(job, update, removal, self._settings.subject_params)
        factors = dict(removal)
        if update is not None:
            factors = {name: joined(removal.get(name), change) for name, change in update.change.items()}
        seconds = dict(update.seconds) if update else {"capture": 0.0, "solve": 0.0}
        result = EditResult(
            delta=WeightDelta.of(factors),
            rows=rows,
            removed_ids=tuple(job.removed_ids),
            num_passes=update.num_passes if update else 0,
            seconds=seconds,
            jitter=together(model.comm, lambda: remaining.jitter),
            scaled_back=min(update.scaled.values(), default=None) if update else None,
        )
        seconds["solve"] += prepared + time.perf_counter() - began
        return result

    def _ask(self, job: EditJob, remaining: Matrices, removal: Factors) -> BatchUpdate:
        solved: dict[str, AddedRows] = {}

        def factor(name: str, keys_TI: Tensor, spread_TH: Tensor, changed_C: Tensor) -> Tensor:
            if name not in solved:
                solved[name] = AddedRows(remaining.factor(name))
            return solved[name].solve(keys_TI, spread_TH, changed_C)

        if self._natural is None or self._natural.prior is not job.ledger.prior:
            self._natural = NaturalGradient(job.ledger.prior, self._settings.damping)
        return run_passes(
            job,
            settings=self._settings,
            trained=self._trained,
            factor=factor,
            start=removal,
            natural=self._natural,
        )


def _rows(job: EditJob, update: BatchUpdate | None, removal: Factors, subject_params: Collection[str]) -> EditRows:
    """Return the batch's rows with absolute targets, `Y = K S' + P R`; no row in a pure removal.

    Rows of several frames at a subject are kept heavier than they were asked: what later batches change of an edit is
    what its subject's key gives (DECISIONS.md, 79).
    """
    keys: dict[str, Tensor | Packed] = {}
    targets: dict[str, Tensor | SharedTargets] = {}
    for param in job.model.inner:
        name = param.name
        if update is None:
            keys[name] = torch.zeros(0, param.in_features)
            targets[name] = torch.zeros(0, param.out_features)
            continue
        keys_TI = update.keys[name].double()
        held_TO = keys_TI @ job.weights.shift(name).to(keys_TI.device).double()
        if name in removal:
            # What is held once the removed rows have left: S' = S_parent + F D, without forming F D.
            left_IR, right_RO = (factor.to(keys_TI.device) for factor in removal[name])
            held_TO = held_TO + (keys_TI @ left_IR) @ right_RO
        if update.are_shared:
            asked_HO, spread_TH, dtype = update.asked[name], update.spread[name], torch.float16
            if name in subject_params:
                dtype = torch.float32
                reached_TO = held_TO + (keys_TI @ update.factors[name]) @ asked_HO
                keys_TI, held_TO, spread_TH = held_harder(keys_TI, held_TO, spread_TH, reached_TO)
            keys[name] = Packed.of(keys_TI, bits=KEY_BITS)
            targets[name] = SharedTargets.of(held_TO, spread_TH, asked_HO, dtype=dtype)
        else:
            keys[name], targets[name] = keys_TI.float().cpu(), (held_TO + update.shifts[name]).float().cpu()
    return EditRows(keys=keys, targets=targets, ranges=update.ranges if update else dict.fromkeys(keys, ()))


def _check_names(job: EditJob) -> None:
    if missing := set(own_share(job.model.comm, job.model.inner_param_names)) - set(job.ledger.prior.moments):
        raise Misconfigured(f"expected a prior of inner parameter {min(missing)}, got one without it")
