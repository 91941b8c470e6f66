"""How rows leave, and a candidate without some of its edits: from the rows that it was made with, without a pass.

Gates blame some edits of a batch, and the others are tried without them. Their rows are known, and rows leave a
candidate as they leave a ledger (`editors.methods.recursive`). With A' and S' the ledger's matrix and shift without
what the candidate removes, and K the keys of the edits that stay:

    S_rest - S_whole = (A' + K^T K)^-1 K_out^T (K_out S_whole - Y_out),        rows that are left out: K_out, Y_out

So `S_rest = (A' + K^T K)^-1 (A' S' + K^T Y)`, as if the others had never been asked, but for what they changed of the
keys and of what was asked while passes were made. The gates measure it like any candidate.

Legend: T rows, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from editors.methods.base import EditJob, EditResult
from editors.methods.batch_update import Factors, joined
from editors.models.comm import own_share, together
from editors.solve.gram import Gram
from editors.solve.linear import Factored
from editors.weights.deltas import WeightDelta, narrowed
from pipeline.domain.errors import UnknownRecord

RowsOf = Callable[[str], tuple[Tensor, Tensor]]
"""Inner parameter -> keys (T x I) and absolute targets (T x O)."""


def can_leave_out(whole: EditResult) -> bool:
    """Return whether a candidate is what its rows say: it was not scaled back, nor solved anew."""
    return whole.scaled_back is None and whole.ledger is None


def without(job: EditJob, whole: EditResult) -> EditResult:
    """Return what is left of a candidate with only the added edits of a job; every rank has to call it.

    Parameters and ledger on exit equal those on entry; `ledger.commit` takes the result in.

    Args:
        job: names the edits that stay. Its model and ledger are those that the candidate was made on, and what it
            removes is what that removed.
        whole: the candidate that had these edits and others; `can_leave_out` is true of it.

    Raises:
        EditorFailed: if a matrix is not positive definite.
        UnknownRecord: for an edit that the candidate does not have.
    """
    began = time.perf_counter()
    staying = {edit.edit_id for edit in job.added}
    if missing := staying - set(whole.rows.edit_ids):
        raise UnknownRecord(f"expected edits of the candidate, got {min(missing)}", edit_id=min(missing))
    rest, gone = whole.rows.only(staying), whole.rows.only(set(whole.rows.edit_ids) - staying)
    matrices = job.ledger.without(whole.removed_ids)

    def factor_of(name: str) -> Factored:
        matrix = Gram(matrices.matrix(name), name=name)
        matrix.add(rest.keys_of(name))
        return matrix.factor()

    change = leaving(
        job, lambda name: (gone.keys_of(name), gone.targets_of(name)), factor_of, change=whole.delta.factors
    )
    factors = {
        name: joined((left.double(), right.double()), change[name])
        for name, (left, right) in whole.delta.factors.items()
    }
    seconds = {"capture": 0.0, "solve": time.perf_counter() - began}
    return replace(whole, delta=WeightDelta.of(factors), rows=rest, num_passes=0, seconds=seconds)


def leaving(
    job: EditJob, rows_of: RowsOf, factor_of: Callable[[str], Factored], change: Factors | None = None
) -> Factors:
    """Return the factors by which rows leave, `A^-1 K^T` and `K S - Y`, fp64; each rank solves for a share of them.

    Where more rows leave than a change of full rank has columns, they are its factors.

    Args:
        job: names model, weights and ledger.
        rows_of: keys and targets of the rows that leave, K and Y, of an inner parameter.
        factor_of: A of an inner parameter, without them.
        change: what S is away from the job's weights, if it is.
    """
    model, device = job.model, job.ledger.device
    own, excess = set(own_share(model.comm, model.inner_param_names)), {}
    for name in model.inner_param_names:
        shift_IO = job.weights.shift(name)  # gathered one weight at a time, so every rank has to ask for each
        if name in own:
            keys_TI, targets_TO = (part.to(device).double() for part in rows_of(name))
            held_TO = keys_TI @ shift_IO.to(device).double()
            if change is not None:
                left_IR, right_RO = (factor.to(device).double() for factor in change[name])
                held_TO += (keys_TI @ left_IR) @ right_RO
            excess[name] = (keys_TI, held_TO - targets_TO)

    def solved() -> Factors:
        return {
            name: narrowed(factor_of(name).solve(keys_TI.T) if len(keys_TI) else keys_TI.T, excess_TO)
            for name, (keys_TI, excess_TO) in excess.items()
        }

    return together(model.comm, solved)
