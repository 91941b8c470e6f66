"""Knows that ranks which train together have to hold the same editor, and looks whether they do. Knows no step.

Every rank solves, transforms and takes Adam's steps by itself, from what all of them gathered.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from editors.models.comm import Comm
from editors.training.objective import Losses, Objective, ParameterGroup
from pipeline.domain.canonical import sha256_blocks
from pipeline.domain.errors import EngineFailed


class SharedObjective:
    """An `Objective` that compares what the ranks hold at each validation.

    Args:
        objective: this rank's.
        comm: the ranks.
    """

    def __init__(self, objective: Objective, comm: Comm) -> None:
        self._objective, self._peers = objective, comm

    def groups(self) -> Sequence[ParameterGroup]:
        """See `Objective`."""
        return self._objective.groups()

    def begin(self) -> None:
        """See `Objective`."""
        self._objective.begin()

    def episode(self, step: int, rng: random.Random) -> Losses:
        """See `Objective`."""
        return self._objective.episode(step, rng)

    def validate(self) -> dict[str, float]:
        """See `Objective`.

        Raises:
            EngineFailed: if the ranks have come apart.
        """
        found = self._peers.gathered(_digest(self._objective.state()))
        if len(set(found)) > 1:
            raise EngineFailed(
                f"expected every rank to hold the same editor, got {', '.join(one[:12] for one in found)}"
            )
        return self._objective.validate()

    def state(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return self._objective.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Objective`."""
        self._objective.restore(state)


def _digest(state: Mapping[str, Tensor]) -> str:
    return sha256_blocks(
        block
        for name, tensor in sorted(state.items())
        for block in (name.encode(), tensor.detach().cpu().contiguous().numpy().tobytes())
    )
