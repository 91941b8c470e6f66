"""Side branches that take changes of weights off again: a model answers as before, and no weight is written.

Legend: I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from editors.models.families import EditableModel
from editors.models.hooks import Branch
from editors.weights.deltas import WeightDelta, WeightStore


def negative_shift(model: EditableModel, weights: WeightStore) -> Mapping[str, Branch]:
    """Return a side branch that takes the whole shift off again: with it, edited weights answer as the base."""
    branches = {}
    for param in model.inner:
        shift_IO = weights.shift(param.name)
        if bool(shift_IO.any()):
            identity_OO = torch.eye(param.out_features, dtype=shift_IO.dtype, device=shift_IO.device)
            branches[param.name] = (-shift_IO, identity_OO)
    return branches


def negative_delta(model: EditableModel, delta: WeightDelta) -> Mapping[str, Branch]:
    """Return a side branch that takes a change off again: with it, a candidate answers as its parent."""
    device = model.device
    return {name: (-left.to(device).float(), right.to(device).float()) for name, (left, right) in delta.factors.items()}
