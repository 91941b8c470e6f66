"""Several snapshots of one base in one process: the base is held once, and of each snapshot only its edited weights.

    base = SwappableBase.load(spec)
    edited = base.edited(digest=digest, inner_param_names=names, accumulator=None, deltas=files)
    base.use(edited)

`edited` runs in any thread: it reads files and checks their digests. `use` runs in the one thread that runs the model,
between two forwards: each edited layer is given another tensor. Nothing is copied, so it costs microseconds, and what
runs on an older snapshot goes on with it.

Legend: I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from editors.models.digest import base_digest, require_base
from editors.models.families import EditableModel
from editors.models.inner_params import inner_params
from editors.weights.deltas import WeightDelta, edited_weight, load_accumulators
from editors.weights.loading import load_base
from pipeline.domain.errors import EditorFailed
from pipeline.domain.rank_api import BaseSpec, FileRef


@dataclass(frozen=True, kw_only=True, slots=True)
class EditedWeights:
    """The edited weights of one snapshot, in the base's dtype and on its device."""

    digest: str
    """Digest of the snapshot; the base's own for the base."""
    weights: Mapping[str, Tensor]
    """Inner parameter -> its weight; those that are not named are the base's."""


class SwappableBase:
    """A base model that answers with the weights of any of its snapshots."""

    def __init__(self, model: EditableModel) -> None:
        self.model = model
        self._pristine: dict[str, Tensor] = {}
        self._swapped: Mapping[str, Tensor] = {}

    @classmethod
    def load(cls, base: BaseSpec, *, inner_param_names: Sequence[str] = (), device: str = "cpu") -> Self:
        """Load a base, whole on one device, if it is the one that is meant.

        Raises:
            WrongBase: if the folder holds another model.
            Misconfigured: if it cannot be loaded.
        """
        folder = Path(base.ref)
        require_base(replace(base, ref=str(folder)), base_digest(folder))
        return cls(load_base(folder, inner_param_names, task=base.task, device=device))

    def edited(
        self,
        *,
        digest: str,
        inner_param_names: Sequence[str],
        accumulator: FileRef | None,
        deltas: Sequence[FileRef],
    ) -> EditedWeights:
        """Return the weights of a snapshot, bit for bit those of `loading.load_snapshot`. Nothing is swapped yet.

        Raises:
            IntegrityBroken: if a file does not have its digest.
            EditorFailed: if a weight is not finite.
            Misconfigured: if the model has no such weight.
        """
        if accumulator is None and not deltas:
            return EditedWeights(digest=digest, weights={})
        shifts = load_accumulators(Path(accumulator.path), accumulator.digest) if accumulator else {}
        changes = [WeightDelta.load(Path(delta.path), delta.digest) for delta in deltas]
        weights = {}
        for param in inner_params(self.model.module, inner_param_names):
            base = self._base_weight(param.name)
            shift_IO = torch.zeros(param.in_features, param.out_features, dtype=torch.float32, device=base.device)
            if param.name in shifts:
                shift_IO = shifts[param.name].to(base.device)
            for change in changes:
                if param.name in change.factors:
                    left, right = change.factors[param.name]
                    shift_IO = shift_IO + left.to(base.device) @ right.to(base.device)
            weights[param.name] = edited_weight(base, shift_IO, param)
            if not bool(torch.isfinite(weights[param.name]).all()):
                raise EditorFailed(f"expected finite weights of {param.name}, got NaN or infinity")
        return EditedWeights(digest=digest, weights=weights)

    def use(self, edited: EditedWeights) -> None:
        """Answer with a snapshot from now on; only the thread that runs the model may call this."""
        if edited.weights is self._swapped:
            return
        for name in self._swapped.keys() - edited.weights.keys():
            self.model.module.get_parameter(name).data = self._pristine[name]
        for name, weight in edited.weights.items():
            self.model.module.get_parameter(name).data = weight
        self._swapped = edited.weights

    def _base_weight(self, name: str) -> Tensor:
        """Return a weight of the base; it is noted down before the first snapshot that changes it exists."""
        if name not in self._pristine:
            self._pristine[name] = self.model.module.get_parameter(name).data
        return self._pristine[name]
