"""Where a base is measured: in this process, or on ranks that hold it together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from editors.models.comm import ALONE, Comm, own_share
from editors.models.families import EditableModel
from editors.solve.prior import Prior
from editors.weights.deltas import PlainWeights, WeightStore
from editors.weights.loading import load_base


def plain_weights(model: EditableModel) -> WeightStore:
    """Return the edited weights of a model that is whole in this process."""
    return PlainWeights(model.module, model.inner)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a base is measured."""

    load: Callable[..., EditableModel] = load_base
    """Loads it; called as `load_base` is."""
    weights_of: Callable[[EditableModel], WeightStore] = plain_weights
    """Returns its edited weights."""
    comm: Comm = ALONE
    """The ranks that hold it together."""
    is_shared: bool = False
    """Whether ranks hold it, also one by itself: each on a device of its own."""

    @property
    def is_first(self) -> bool:
        """Whether this process shows and writes what is found."""
        return self.comm.rank == 0

    def own(self, prior: Prior) -> Prior:
        """Return the part of a prior that this process solves with."""
        return prior.only(own_share(self.comm, list(prior.moments)))


HERE = Place()
"""This process alone."""
