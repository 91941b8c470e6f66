"""What training asks of an objective, and how data are dealt out to its episodes."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from editors.mend.transform import MendTransform
from editors.models.comm import Comm
from editors.models.families import EditableModel
from pipeline.domain.errors import IntegrityBroken

SCORE = "score"
"""The validation figure that decides which editor is the best; more is better."""
LOSS = "loss"
"""The figure of training and validation that the curve shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """Losses and figures of an episode."""

    total: Tensor
    """A scalar whose gradient by the parameters is that of the loss; its value need not be the loss."""
    parts: dict[str, float]
    """Figures to show, `loss` among them."""
    num_edits: int
    """How many edits the episode has."""


class Objective(ABC):
    """The losses that train a transform, on the data that an objective holds.

    Everything has to follow from the tensors of `state`, the number of the step and the `rng` that comes with it. Then
    a run that was killed and resumed gives the bits of one that was not.

    Args:
        model: the base.
        transform: what is trained.
        network_lr: learning rate of the network.
        rate_lr: learning rate of the logarithms of the transform's own rates.
    """

    def __init__(self, model: EditableModel, transform: MendTransform, *, network_lr: float, rate_lr: float) -> None:
        self._model, self._transform = model, transform
        self._network_lr, self._rate_lr = network_lr, rate_lr

    @abstractmethod
    def begin(self) -> None:
        """Set statistics and initial rates; called before the first step of a new run, and never on a resume."""

    @abstractmethod
    def episode(self, step: int, rng: random.Random) -> Losses:
        """Return the losses of a step, counted from 0, with their graph; the model's weights stay as they are.

        Raises:
            EditorFailed: if the numbers cannot be used; the step is skipped and counted.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Return figures on held-out edits, `score` and `loss` among them; nothing changes."""

    def groups(self) -> list[dict[str, Any]]:
        """Return what the optimizer changes, always in the same order, as torch's parameter groups.

        The rates are a group of their own, as in the paper. The learning rates are those before any schedule.
        """
        network = {"params": list(self._transform.networks.parameters()), "lr": self._network_lr}
        return [network, {"params": [self._transform.log_rate_M], "lr": self._rate_lr}]

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that later steps depend on: those of the transform."""
        return dict(self._transform.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the tensors that `state` returned, in this process or another.

        Raises:
            IntegrityBroken: if these are other tensors.
        """
        try:
            self._transform.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise IntegrityBroken(f"expected the transform's tensors in a training state, got: {reason}") from error

    def _observe(self, u_TI: Mapping[str, Tensor], delta_TO: Mapping[str, Tensor]) -> None:
        for name, keys_TI in u_TI.items():
            self._transform.observe(name, keys_TI, delta_TO[name])


def summed_gradients(comm: Comm, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums of the gradients that the losses of all ranks have left in leaves; every rank has to call it.

    The sums are in the order of the ranks, so they have the same bits on every rank.

    Args:
        comm: the ranks.
        leaves: tensors by name, the same on every rank; one that no loss depends on is left out.
    """
    if comm.num_ranks == 1:
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    own = {name: leaf.grad.cpu() for name, leaf in leaves.items() if leaf.grad is not None}
    found: dict[str, Tensor] = {}
    for of_rank in comm.gathered(own):
        for name, gradient in of_rank.items():
            found[name] = found[name] + gradient if name in found else gradient
    return {name: found[name].to(leaf.device) for name, leaf in leaves.items() if name in found}


class Deck:
    """Deals out the places of a list in batches, each place once a round; every round is shuffled anew.

    A batch depends on nothing but the step, so a resumed run goes on where it was.

    Args:
        size: how many places there are.
        batch: how many a step takes; a batch across two rounds may hold a place twice.
        seed: seed of the shuffles.
    """

    def __init__(self, size: int, *, batch: int, seed: int) -> None:
        self._size, self._batch, self._seed = size, batch, seed
        self._rounds: dict[int, list[int]] = {}

    def places(self, step: int) -> list[int]:
        """Return the batch of a step, counted from 0."""
        first = step * self._batch
        return [self._round(place // self._size)[place % self._size] for place in range(first, first + self._batch)]

    def _round(self, number: int) -> list[int]:
        if number not in self._rounds:
            self._rounds = {known: order for known, order in self._rounds.items() if known == number - 1}
            order = list(range(self._size))
            random.Random(f"{self._seed} {number}").shuffle(order)  # noqa: S311
            self._rounds[number] = order
        return self._rounds[number]
