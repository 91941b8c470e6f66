"""What a batch asks of the weights, and what a solver makes of it.

Legend: T edit rows, H shifts, I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editors.models.hooks import Branch
from editors.solve.rows import Ranges
from editors.weights.deltas import product_norm

Factor = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""(inner parameter, K T x I, P T x H, which rows of K are others than in its last solve) -> F P (I x H), fp64: the
solver's update is `F P R` for shifts R."""
Factors = dict[str, tuple[Tensor, Tensor]]
"""Inner parameter -> (F I x R, D R x O), fp64: a change."""


@dataclass(kw_only=True, slots=True)
class BatchUpdate:
    """What a batch asks of each inner parameter, and what the solver makes of it."""

    keys: dict[str, Tensor] = field(default_factory=dict)
    """Inner parameter -> K (T x I), fp32: each row's key at the candidate when it was last read, times the root of the
    row's weight; where rows share shifts, rounded to what is stored of it."""
    asked: dict[str, Tensor] = field(default_factory=dict)
    """Inner parameter -> R (H x O), fp64: the shifts, summed over the passes."""
    spread: dict[str, Tensor] = field(default_factory=dict)
    """Inner parameter -> P (T x H), fp64: the root of a row's weight at the shift that it asks for; 0 for a guard."""
    factors: dict[str, Tensor] = field(default_factory=dict)
    """Inner parameter -> F P (I x H), fp64."""
    ranges: dict[str, Ranges] = field(default_factory=dict)
    """Inner parameter -> rows of each edit."""
    are_shared: bool = False
    """Whether the frames of an edit share its shifts, so that its rows are stored packed."""
    scaled: dict[str, float] = field(default_factory=dict)
    """Inner parameter -> what was left of all that was asked, where that would have passed the bound of a change."""
    num_passes: int = 0
    """Passes made, both groups together."""
    seconds: dict[str, float] = field(default_factory=lambda: {"capture": 0.0, "solve": 0.0})
    """Wall time of `capture` and `solve`."""

    @property
    def change(self) -> Factors:
        """The change of the weights: F P and R as factors, as many columns as there are shifts."""
        return {name: (self.factors[name], self.asked[name]) for name in self.keys}

    def scale_back(self, name: str, most: float | None) -> None:
        """Ask for less of an inner parameter, of all edits alike, where its change would have a larger norm."""
        if most is not None and (norm := product_norm(self.factors[name], self.asked[name])) > most:
            self.asked[name] *= most / norm
            self.scaled[name] = self.scaled.get(name, 1.0) * most / norm

    @property
    def shifts(self) -> dict[str, Tensor]:
        """Inner parameter -> P R (T x O), fp64: what is asked at each row of `keys`."""
        return {name: self.spread[name] @ self.asked[name] for name in self.keys}

    def branches(self, start: Factors, device: torch.device) -> dict[str, Branch]:
        """Return the candidate as side branches: what it starts with and this change, fp32 on a device."""
        found = {name: joined(start.get(name), factors) for name, factors in self.change.items()}
        return {
            name: (left.float().to(device), right.float().to(device))
            for name, (left, right) in found.items()
            if left.shape[1]
        }


def joined(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the factors of the sum of two low-rank changes: side by side, `[F1 F2]` and `[D1; D2]`."""
    if first is None:
        return second
    left_IR, right_RO = (factor.to(second[0].device) for factor in first)
    return torch.cat([left_IR, second[0]], dim=1), torch.cat([right_RO, second[1]])
