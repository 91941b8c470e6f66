"""What a transform is asked in the passes over a batch, so that training can ask it again with gradient.

Legend: H shifts, I in_features, O out_features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from editors.models.families import EditableModel


@dataclass(frozen=True, slots=True)
class Asked:
    """What the transform was asked of one inner parameter in one pass."""

    shift_H: Tensor
    """Which of the batch's shifts."""
    u_HI: Tensor
    """Key of each shift: what enters the layer at the own prompt."""
    delta_HO: Tensor
    """Natural gradient of each shift, the mean over the frames that were read."""
    probability_H: Tensor
    """Probability of the target in the frame that lags most."""


class Recorder:
    """What a transform is asked in the passes over a batch; it is asked again, with gradient, once they are made."""

    def __init__(self) -> None:
        self.asked: dict[str, list[Asked]] = {}

    def __call__(self, name: str, shift_H: Tensor, u_HI: Tensor, delta_HO: Tensor, probability_H: Tensor) -> None:
        """Take what one pass asks; a `passes.Watch`."""
        self.asked.setdefault(name, []).append(Asked(shift_H, u_HI, delta_HO, probability_H))


def gathered_asks(model: EditableModel, recorder: Recorder) -> dict[str, list[Asked]]:
    """Return what the transform was asked on all ranks: each solves for a share of the inner parameters."""
    if model.comm.num_ranks == 1:
        return {name: recorder.asked[name] for name in model.inner_param_names if name in recorder.asked}
    own = {name: [_moved(one, torch.device("cpu")) for one in asked] for name, asked in recorder.asked.items()}
    found = {name: asked for of_rank in model.comm.gathered(own) for name, asked in of_rank.items()}
    return {
        name: [_moved(one, model.device) for one in found[name]] for name in model.inner_param_names if name in found
    }


def _moved(asked: Asked, device: torch.device) -> Asked:
    return Asked(
        asked.shift_H.to(device), asked.u_HI.to(device), asked.delta_HO.to(device), asked.probability_H.to(device)
    )
