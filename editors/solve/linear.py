"""Knows the linear algebra from wanted shifts at keys to one update of a weight. Knows no model and no ledger.

Every solver gives a factor F (I x T) so that the update is `S = F D` for the shifts D (T x O) that are wanted at the
keys K (T x I). All in fp64.

Legend: T edit rows, I in_features, O out_features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.domain.errors import EditorFailed

JITTER = 2.0**-24
"""What is added to the diagonal, as a fraction of the trace, when a matrix is not positive definite as it is: moments
are kept in fp32, whose rounding moves no eigenvalue further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Factored:
    """A positive definite matrix A (I x I), by its Cholesky factor."""

    lower_II: Tensor
    """L with A = L L^T, fp64; what lies above its diagonal is not read."""
    jitter: float = 0.0
    """What had to be added to the diagonal; 0 for a matrix that was fine as it was."""

    def solve(self, right_IT: Tensor) -> Tensor:
        """A^-1 times a matrix."""
        return torch.cholesky_solve(right_IT, self.lower_II)


def factored(matrix_II: Tensor, *, name: str) -> Factored:
    """Cholesky factor of a symmetric matrix; tried once more with a jitter on the diagonal.

    Raises:
        EditorFailed: if the matrix is not positive definite even so, or not finite.
    """
    if not bool(torch.isfinite(matrix_II).all()):
        raise EditorFailed(f"expected finite sums of keys, got NaN or infinity for {name}", inner_param=name)
    lower_II, info = torch.linalg.cholesky_ex(matrix_II)
    if int(info) == 0:
        return Factored(lower_II=lower_II)
    jitter = JITTER * float(matrix_II.diagonal().abs().sum())
    shifted_II = matrix_II + jitter * torch.eye(len(matrix_II), dtype=matrix_II.dtype, device=matrix_II.device)
    lower_II, info = torch.linalg.cholesky_ex(shifted_II)
    if int(info) != 0:
        raise EditorFailed(
            f"expected a positive definite matrix for {name}, got one that fails at row {int(info)} "
            f"even with {jitter:.3g} on the diagonal",
            inner_param=name,
        )
    return Factored(lower_II=lower_II, jitter=jitter)


def added_rows(matrix: Factored, keys_TI: Tensor) -> Tensor:
    """`(A + K^T K)^-1 K^T` from the factor of A, by Woodbury: only a T x T system is new. I x T."""
    spread_IT = matrix.solve(keys_TI.T)
    inner_TT = keys_TI @ spread_IT
    inner_TT = (inner_TT + inner_TT.T) / 2 + torch.eye(len(keys_TI), dtype=keys_TI.dtype, device=keys_TI.device)
    return factored(inner_TT, name="the rows of a batch").solve(spread_IT.T).T


def least_squares(keys_TI: Tensor, *, ridge: float) -> Tensor:
    """`(K^T K + ridge I)^-1 K^T` in the primal or the dual form, whichever is smaller (MALMEN). I x T."""
    num_rows, width = keys_TI.shape
    if num_rows <= width:
        gram_TT = keys_TI @ keys_TI.T + ridge * torch.eye(num_rows, dtype=keys_TI.dtype, device=keys_TI.device)
        return factored(gram_TT, name="least squares").solve(keys_TI).T
    gram_II = keys_TI.T @ keys_TI + ridge * torch.eye(width, dtype=keys_TI.dtype, device=keys_TI.device)
    return factored(gram_II, name="least squares").solve(keys_TI.T)


def summed(keys_TI: Tensor) -> Tensor:
    """Each row's own minimal update, added up without regard for the others (what MEND does). I x T."""
    return (keys_TI / keys_TI.square().sum(dim=1, keepdim=True).clamp(min=1e-30)).T
