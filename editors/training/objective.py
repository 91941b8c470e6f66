"""Knows what training asks of an episode, whatever that is, and how data are dealt out to episodes. Trains nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from editors.models.comm import Comm

SCORE = "score"
"""The validation figure that picks the best checkpoint; more is better."""
LOSS = "loss"
"""The figure, in training and validation, that the curve shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """What one episode gave."""

    total: Tensor
    """A scalar whose gradient by the parameters is the episode's; its value need not be the loss."""
    parts: dict[str, float]
    """Figures to show, among them `loss`."""
    num_edits: int
    """Edits in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Parameters with a learning rate of their own."""

    parameters: Sequence[nn.Parameter]
    """What is learned."""
    lr: float
    """Adam's, before any schedule."""


class Objective(Protocol):
    """What is trained, and on what.

    Everything must follow from the tensors of `state`, the number of the step and the `rng` that comes with it: then a
    run that was killed and resumed gives the bits of one that was not.
    """

    def groups(self) -> Sequence[ParameterGroup]:
        """What the optimizer moves, always in the same order."""
        ...

    def begin(self) -> None:
        """Called once, before the first step of a new run and never on a resume: statistics, initial rates."""
        ...

    def episode(self, step: int, rng: random.Random) -> Losses:
        """The losses of a step, from 0, with their graph. The model's weights are as before on return.

        Raises:
            EditorFailed: if the numbers cannot be used; the step is skipped and counted.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out edits, among them `score` and `loss`; nothing changes by it."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Every tensor that later steps depend on: parameters, statistics, what is carried from step to step."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the place of the objective that gave this state."""
        ...


def backward(parts: Sequence[Tensor], log_NV: Tensor) -> None:
    """A backward pass from the parts of a batch's loss; one of nothing for a filler, for which other ranks wait."""
    total = torch.stack(list(parts)).sum() if parts else 0.0 * log_NV.sum()
    total.backward()  # type: ignore[no-untyped-call]


def summed_gradients(comm: Comm, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients that all ranks' losses left in leaves, which are the same on every rank, summed in their order.

    Args:
        comm: the ranks; every rank has to ask.
        leaves: by name; one that no loss of any rank depends on is left out.
    """
    own = {name: leaf.grad.cpu() for name, leaf in leaves.items() if leaf.grad is not None}
    found: dict[str, Tensor] = {}
    for of_rank in comm.gathered(own):
        for name, gradient in of_rank.items():
            found[name] = found[name] + gradient if name in found else gradient
    return {name: found[name].to(leaf.device) for name, leaf in leaves.items() if name in found}


class Deck:
    """Deals places of a list in batches: each once a round, shuffled anew for each; a function of the step alone.

    Args:
        size: how many places there are.
        batch: how many a step takes; a batch may lie across two rounds, and then hold a place twice.
        seed: of the shuffles.
    """

    def __init__(self, size: int, *, batch: int, seed: int) -> None:
        self._size, self._batch, self._seed = size, batch, seed
        self._rounds: dict[int, list[int]] = {}

    def places(self, step: int) -> list[int]:
        """The batch of a step, from 0."""
        first = step * self._batch
        return [self._round(place // self._size)[place % self._size] for place in range(first, first + self._batch)]

    def _round(self, number: int) -> list[int]:
        if number not in self._rounds:
            self._rounds = {known: order for known, order in self._rounds.items() if known == number - 1}
            order = list(range(self._size))
            random.Random(f"{self._seed} {number}").shuffle(order)  # noqa: S311
            self._rounds[number] = order
        return self._rounds[number]
