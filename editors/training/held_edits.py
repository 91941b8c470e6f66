"""Weights that hold the edits of earlier episodes, as a stream leaves them.

Each batch that is taken in makes them stiffer and moves them further, so a transform that is trained on them learns
what its shifts do late in a stream. What is held is not rows but their sums: A^-1 and S of each inner parameter.

    held.factor(name, keys_TI, spread_TH, changed_C)        # (A + K^T K)^-1 K^T P
    held.take(update, places)                               # A <- A + K^T K,   S <- S + F P R

Legend: T rows, H shifts, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editors.methods.batch_update import BatchUpdate, Factors
from editors.models.comm import ALONE, Comm, own_share
from editors.solve.ledger import Ledger
from editors.solve.linear import Factored, factored


class HeldEdits:
    """The edits that the weights of a training run hold.

    Args:
        ledger: prior and ridge, without rows.
        names: inner parameters, in order.
        comm: the ranks that hold the base together; each solves for a share of the inner parameters.

    Attributes:
        places: the edits that are held, by their places among the examples, in the order in which they came.
    """

    def __init__(self, ledger: Ledger, names: Sequence[str], comm: Comm) -> None:
        self._ledger, self._own = ledger, set(own_share(comm, list(names)))
        self._at_base: dict[str, Tensor] = {}
        self._inverse: dict[str, Tensor] = {}
        self._shift: dict[str, Tensor] = {}
        self.places: list[int] = []

    def at_base(self) -> HeldEdits:
        """Return weights that hold nothing, with what has been made of the base already."""
        made = HeldEdits(self._ledger, (), ALONE)
        made._own, made._at_base = self._own, self._at_base
        return made

    @property
    def start(self) -> Factors:
        """S of each inner parameter as factors: itself (I x O) and the identity; none where nothing is held."""
        return {name: (shift_IO, torch.eye(shift_IO.shape[1]).to(shift_IO)) for name, shift_IO in self._shift.items()}

    def clear(self) -> None:
        """Go back to the base."""
        self._inverse, self._shift, self.places = {}, {}, []

    def factor(self, name: str, keys_TI: Tensor, spread_TH: Tensor, _changed_C: Tensor) -> Tensor:
        """Return `(A + K^T K)^-1 K^T P`, I x H, fp64, by Woodbury's identity; a `batch_update.Factor`."""
        spread_IT, inner = self._reduced(name, keys_TI.double())
        return spread_IT @ inner.solve(spread_TH)

    @torch.no_grad()
    def take(self, update: BatchUpdate, places: Sequence[int]) -> None:
        """Take a batch in.

        Args:
            update: what the passes over it came to.
            places: its edits among the examples.
        """
        for name, keys_TI in update.keys.items():
            if name in self._own:
                # (A + K^T K)^-1 = A^-1 - F (A^-1 K^T)^T, and symmetric but for rounding.
                spread_IT, inner = self._reduced(name, keys_TI.double())
                inverse_II = self._of(name) - spread_IT @ inner.solve(spread_IT.T)
                self._inverse[name] = (inverse_II + inverse_II.T) / 2
            added_IO = update.factors[name] @ update.asked[name]
            self._shift[name] = self._shift[name] + added_IO if name in self._shift else added_IO
        self.places += places

    def _reduced(self, name: str, keys_TI: Tensor) -> tuple[Tensor, Factored]:
        """Return `A^-1 K^T` (I x T) and the factor of `I + K A^-1 K^T` (T x T)."""
        spread_IT = self._of(name) @ keys_TI.T
        inner_TT = keys_TI @ spread_IT
        eye_TT = torch.eye(len(keys_TI), dtype=keys_TI.dtype, device=keys_TI.device)
        return spread_IT, factored((inner_TT + inner_TT.T) / 2 + eye_TT, name="the rows of a batch")

    def _of(self, name: str) -> Tensor:
        """Return A^-1, I x I, fp64: an inverse, since it is multiplied far more often than it is made."""
        if name in self._inverse:
            return self._inverse[name]
        if name not in self._at_base:
            self._at_base[name] = torch.cholesky_inverse(self._ledger.without().factor(name).lower_II)
        return self._at_base[name]
