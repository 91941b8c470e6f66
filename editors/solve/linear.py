"""Linear algebra: from the shifts that are wanted at keys to one update of a weight.

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
        """Return A^-1 times a matrix (I x T), solved where A is and returned on the matrix's own device."""
        return torch.cholesky_solve(right_IT.to(self.lower_II.device), self.lower_II).to(right_IT.device)


def factored(matrix_II: Tensor, *, name: str) -> Factored:
    """Return the Cholesky factor of a symmetric matrix; if that fails, with a jitter on its diagonal.

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
    """Return `(A + K^T K)^-1 K^T`, I x T, from the factor of A: only a T x T system is new.

    By Woodbury's identity it is `A^-1 K^T (I + K A^-1 K^T)^-1`. All of it is computed where A is, and the result comes
    back on the device of the keys.
    """
    device, keys_TI = keys_TI.device, keys_TI.to(matrix.lower_II.device)
    spread_IT = matrix.solve(keys_TI.T)
    inner_TT = keys_TI @ spread_IT
    # Symmetric but for rounding; made so exactly, because Cholesky reads one half only.
    inner_TT = (inner_TT + inner_TT.T) / 2 + torch.eye(len(keys_TI), dtype=keys_TI.dtype, device=keys_TI.device)
    return factored(inner_TT, name="the rows of a batch").solve(spread_IT.T).T.to(device)


class AddedRows:
    """Solves `(A + K^T K)^-1 K^T P` again and again, while only some of the keys change.

    With A = L L^T and X = L^-1 K^T it is `L^-T X (I + X^T X)^-1 P`. X and its products are kept, on the device of A:
    a solve costs two triangular systems, of as many columns as keys have changed and as P has, where `added_rows` has
    two of all rows.

    Args:
        matrix: A, by its factor.
    """

    def __init__(self, matrix: Factored) -> None:
        self._matrix = matrix
        self._reduced_IT = self._inner_TT = torch.empty(0, 0, dtype=torch.float64)

    def solve(self, keys_TI: Tensor, spread_TH: Tensor, changed_C: Tensor) -> Tensor:
        """Return `(A + K^T K)^-1 K^T P`, I x H, fp64, on the device of the keys.

        Args:
            keys_TI: K.
            spread_TH: P.
            changed_C: the rows of K that are others than in the last solve; in the first one all are.
        """
        lower_II = self._matrix.lower_II
        if len(self._inner_TT) != len(keys_TI):
            self._reduced_IT = self._reduced(keys_TI)
            self._inner_TT = self._reduced_IT.T @ self._reduced_IT
        else:
            changed_C = changed_C.to(lower_II.device)
            self._reduced_IT[:, changed_C] = self._reduced(keys_TI[changed_C.to(keys_TI.device)])
            inner_CT = self._reduced_IT[:, changed_C].T @ self._reduced_IT
            self._inner_TT[changed_C] = inner_CT
            self._inner_TT[:, changed_C] = inner_CT.T
        eye_TT = torch.eye(len(keys_TI), dtype=torch.float64, device=lower_II.device)
        inner = factored(self._inner_TT + eye_TT, name="the rows of a batch")
        asked_IH = self._reduced_IT @ inner.solve(spread_TH.to(lower_II))
        found_IH: Tensor = torch.linalg.solve_triangular(lower_II.T, asked_IH, upper=True)
        return found_IH.to(keys_TI.device)

    def _reduced(self, keys_TI: Tensor) -> Tensor:
        """Return L^-1 K^T of some keys."""
        lower_II = self._matrix.lower_II
        found_IT: Tensor = torch.linalg.solve_triangular(lower_II, keys_TI.to(lower_II).T, upper=False)
        return found_IT


def least_squares(keys_TI: Tensor, *, ridge: float) -> Tensor:
    """Return `(K^T K + ridge I)^-1 K^T`, I x T, in the primal or the dual form, whichever is smaller (MALMEN)."""
    num_rows, width = keys_TI.shape
    if num_rows <= width:  # the dual form: K^T (K K^T + ridge I)^-1
        gram_TT = keys_TI @ keys_TI.T + ridge * torch.eye(num_rows, dtype=keys_TI.dtype, device=keys_TI.device)
        return factored(gram_TT, name="least squares").solve(keys_TI).T
    gram_II = keys_TI.T @ keys_TI + ridge * torch.eye(width, dtype=keys_TI.dtype, device=keys_TI.device)
    return factored(gram_II, name="least squares").solve(keys_TI.T)


def summed(keys_TI: Tensor) -> Tensor:
    """Return `K^T` with each column divided by its key's squared length, I x T.

    Each row gets the smallest update that gives its shift, and they are added up without regard for each other.
    """
    return (keys_TI / keys_TI.square().sum(dim=1, keepdim=True).clamp(min=1e-30)).T
