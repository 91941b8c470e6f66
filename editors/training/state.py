"""Knows everything that the rest of a training run depends on, and its one file. Knows no step.

Safetensors with a line of JSON, written beside its place and renamed: a run that is killed at any moment has a whole
state, that of its last checkpoint. Random numbers are drawn from the seed and the number of the step, so the step is
all that has to be known of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from torch.optim import Optimizer

from editors.data.atomic_files import write_atomically
from editors.weights.deltas import read_tensors, tensor_bytes
from pipeline.domain.errors import IntegrityBroken

KIND = "training"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps made."""
    num_edits: int = 0
    """Edits in them."""
    num_skipped: int = 0
    """Steps of them that were skipped because a number was not finite."""
    best_step: int = 0
    """Steps behind the best checkpoint."""
    best_score: float | None = None
    """Its validation score; None before the first validation."""
    best_figures: dict[str, float] | None = None
    """Its validation figures."""
    figures: dict[str, float] | None = None
    """The last validation's."""
    num_stale: int = 0
    """Validations since the best one."""

    def validated(self, figures: Mapping[str, float], score: float) -> Progress:
        """The same after a validation; a score that is not a number is never the best."""
        known = dict(figures)
        is_best = math.isfinite(score) and (self.best_score is None or score > self.best_score)
        own = {item.name: getattr(self, item.name) for item in fields(self)} | {"figures": known}
        if is_best:
            return Progress(
                **own | {"best_step": self.step, "best_score": score, "best_figures": known, "num_stale": 0}
            )
        return Progress(**own | {"num_stale": self.num_stale + 1})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """A run between two steps."""

    progress: Progress
    """How far it is."""
    objective: dict[str, Tensor]
    """Of the objective."""
    optimizer: dict[str, Tensor]
    """Of the optimizer; see `optimizer_tensors`."""

    def save(self, path: Path) -> None:
        """Replace the file at once."""
        tensors = {f"objective/{name}": tensor for name, tensor in self.objective.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.items()}
        write_atomically(path, tensor_bytes(tensors, {"kind": KIND, "progress": asdict(self.progress)}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a state back.

        Raises:
            IntegrityBroken: if the file is no training state.
        """
        tensors, facts = read_tensors(path, KIND)
        try:
            progress = Progress(**facts["progress"])
        except (KeyError, TypeError) as error:
            raise IntegrityBroken(
                f"expected a training state in {path}, got one without progress: {error!r}"
            ) from error
        return cls(
            progress=progress,
            objective=_part(tensors, "objective/"),
            optimizer=_part(tensors, "optimizer/"),
        )


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers, as tensors by place of the parameter and kind."""
    memory: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{place}/{kind}": tensor for place, kinds in memory.items() for kind, tensor in kinds.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Let an optimizer of the same parameters remember what another did."""
    document: dict[str, Any] = optimizer.state_dict()
    memory: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, kind = name.split("/")
        memory.setdefault(int(place), {})[kind] = tensor.clone()
    optimizer.load_state_dict(document | {"state": memory})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
