"""Knows how a token's key and gradient become the shift that is wanted there. Knows no model and no solve.

`GradientTransform` is what edits where no network has been trained; MEND's trained transform joins it here.

Legend: T edit rows (target tokens), I in_features, O out_features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Transform(Protocol):
    """Turns what was captured of an inner parameter into the shift D that is wanted at its keys."""

    def __call__(self, *, name: str, u_TI: Tensor, delta_TO: Tensor, probability_T: Tensor) -> Tensor:
        """The wanted shift at each key, T x O; a row of zeros asks for nothing.

        Args:
            name: the inner parameter.
            u_TI: keys, the layer's inputs.
            delta_TO: gradients of the edit loss at its outputs.
            probability_T: of each row's target token, now.
        """
        ...


class TrainedTransform(Transform, Protocol):
    """A transform that was trained for certain inner parameters."""

    @property
    def names(self) -> tuple[str, ...]:
        """The inner parameters; it must not be called for others."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientTransform:
    """A step against the normalised gradient, as long as the mean key and scaled by what is still missing.

    Row j is `-step * mean|k| * (rest + margin - p_j) * g_j / |g_j|`, and zero once `p_j` reaches `rest`.
    """

    step: float
    """Length of a step, in mean key norms, for a token of which everything is missing."""
    rest: float
    """Probability at which a token rests."""
    margin: float = 0.1
    """What a token is aimed at beyond `rest`, so that it gets there in finitely many passes."""

    def __call__(self, *, name: str, u_TI: Tensor, delta_TO: Tensor, probability_T: Tensor) -> Tensor:
        """See `Transform`."""
        missing_T = (self.rest + self.margin - probability_T).clamp(min=0)
        missing_T = missing_T.masked_fill(probability_T >= self.rest, 0.0)
        norm_T = delta_TO.norm(dim=1).clamp(min=1e-30)
        length_T: Tensor = self.step * u_TI.norm(dim=1).mean() * missing_T / norm_T
        return -length_T[:, None] * delta_TO
