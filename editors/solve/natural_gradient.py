"""The natural gradient: the direction that serves an edit most for what it changes elsewhere.

With `G = mean(d d^T)` over plain text (see `prior`), the natural gradient of a row's gradient g is

    (G + damping * mean(diag G) * I)^-1 g

which is K-FAC's output side (Martens and Grosse, ICML 2015); the ledger's C0 is its input side. Only the direction
counts: transforms give it a length of their own.

Legend: T edit rows, O out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from editors.solve.linear import Factored, factored
from editors.solve.prior import Prior
from pipeline.domain.errors import Misconfigured


class NaturalGradient:
    """Turns gradients at the outputs of inner parameters into natural ones.

    Args:
        prior: has the gradients' moments.
        damping: what is added to the diagonal, as a fraction of its mean; 0 leaves gradients as they are.

    Attributes:
        prior: whose moments they are.

    Raises:
        Misconfigured: if the damping is below 0 or not finite.
    """

    def __init__(self, prior: Prior, damping: float) -> None:
        if not 0 <= damping < float("inf"):
            raise Misconfigured(f"expected a damping of 0 or more, got {damping}")
        self.prior, self._moments, self._damping = prior, prior.gradient_moments, damping
        self._factors: dict[str, Factored] = {}

    def __call__(self, name: str, delta_TO: Tensor) -> Tensor:
        """Return the natural gradients of an inner parameter's rows, T x O, fp32 on their device.

        Raises:
            Misconfigured: if the prior has no moments of the inner parameter's gradients.
            EditorFailed: if the moments are not finite.
        """
        if self._damping == 0 or not len(delta_TO):
            return delta_TO
        return self._factor(name, delta_TO.device).solve(delta_TO.double().T).T.float()

    def _factor(self, name: str, device: torch.device) -> Factored:
        if name not in self._moments:
            raise Misconfigured(f"expected a prior with moments of the gradients of {name}, got one without them")
        if name not in self._factors:
            moment_OO = self._moments[name].to(device).double()  # solved where the gradients are
            damped = self._damping * float(moment_OO.diagonal().mean())
            eye_OO = torch.eye(len(moment_OO), dtype=torch.float64, device=device)
            self._factors[name] = factored(moment_OO + damped * eye_OO, name=f"the gradients of {name}")
        return self._factors[name]
