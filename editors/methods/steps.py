"""Transforms: from the key and gradient of a row to the shift that is wanted there.

`GradientTransform` needs no training; `editors.mend.transform` has the trained one.

Legend: T edit rows (target tokens), I in_features, O out_features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Transform(Protocol):
    """Turns what was captured of an inner parameter into the shift D that is wanted at its keys."""

    def __call__(self, *, name: str, u_TI: Tensor, delta_TO: Tensor, probability_T: Tensor) -> Tensor:
        """Return the wanted shift at each key, T x O; a row of zeros asks for nothing.

        Args:
            name: the inner parameter.
            u_TI: keys, the layer's inputs.
            delta_TO: gradients of the edit loss at its outputs.
            probability_T: of each row's target token, now.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientTransform:
    """A step against the normalised gradient, as long as the mean key and scaled by the row's deficit.

    Row j is `-step * mean|k| * (stop_probability + margin - p_j) * g_j / |g_j|`, and zero once `p_j` has reached
    `stop_probability`.
    """

    step: float
    """Length of a step, in mean key norms, for a token with a deficit of 1."""
    stop_probability: float
    """Probability from which a token asks for nothing."""
    margin: float = 0.1
    """How far beyond `stop_probability` a token is aimed, so that it gets there in finitely many passes."""

    def __call__(self, *, name: str, u_TI: Tensor, delta_TO: Tensor, probability_T: Tensor) -> Tensor:
        """See `Transform`."""
        deficit_T = (self.stop_probability + self.margin - probability_T).clamp(min=0)
        deficit_T = deficit_T.masked_fill(probability_T >= self.stop_probability, 0.0)
        # Gradients shrink as a token gets probable: with their length steps would, too, and the last one never come.
        norm_T = delta_TO.norm(dim=1).clamp(min=1e-30)
        length_T: Tensor = self.step * u_TI.norm(dim=1).mean() * deficit_T / norm_T
        return -length_T[:, None] * delta_TO
