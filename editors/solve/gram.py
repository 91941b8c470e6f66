"""The matrix A of one inner parameter and its Cholesky factor, which share a square of memory.

A lies above the diagonal and its factor, once it was asked for, on and below it; A's own diagonal is kept beside.

Legend: T edit rows, I in_features.
"""

from __future__ import annotations

from torch import Tensor

from editors.solve.linear import Factored, factored


class Gram:
    """A (I x I), to which rows are added in place.

    Args:
        matrix_II: A to begin with, fp64; it is not to be used by anybody else from here on.
        name: of the inner parameter, for what is said when A cannot be factored.
    """

    def __init__(self, matrix_II: Tensor, *, name: str) -> None:
        self._square_II = matrix_II.T  # column by column, as LAPACK wants the factor
        self._diagonal_I = matrix_II.diagonal().clone()
        self._factor: Factored | None = None
        self._name = name

    def matrix(self) -> Tensor:
        """Return A, I x I, fp64, in memory of its own."""
        lower_II = self._square_II.T.tril(-1)  # on the other side of the diagonal there may be the factor
        matrix_II = lower_II + lower_II.T
        matrix_II.diagonal().copy_(self._diagonal_I)
        return matrix_II

    def factor(self) -> Factored:
        """Return the Cholesky factor of A; good until rows are added.

        Raises:
            EditorFailed: if A is not positive definite.
        """
        if self._factor is None:
            found = factored(self._square_II.T, name=self._name)  # reads what is now below the diagonal
            self._square_II.T.tril_(-1)  # column by column `triu_(1)` itself takes as long as half of the factoring
            self._square_II.add_(found.lower_II)
            self._factor = Factored(lower_II=self._square_II, jitter=found.jitter)
        return self._factor

    @property
    def jitter(self) -> float:
        """What had to be added to A's diagonal for its factor; 0 if nothing, or if there is none yet."""
        return 0.0 if self._factor is None else self._factor.jitter

    def add(self, keys_TI: Tensor) -> None:
        """Add `K^T K` of keys on any device, in fp64 where A is; a factor that was handed out is good no more."""
        if not len(keys_TI):
            return
        keys_TI = keys_TI.to(self._square_II)
        self._factor = None
        # A's own diagonal comes back: the factor's has lain over it. What is below it from now on, nobody reads.
        self._square_II.diagonal().copy_(self._diagonal_I)
        self._square_II.addmm_(keys_TI.T, keys_TI)
        self._diagonal_I.copy_(self._square_II.diagonal())
