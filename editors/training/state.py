"""The state of a training run between two steps, and the file that holds it.

The file is safetensors with a line of JSON. It is written beside its place and then renamed, so that a run that is
killed at any moment has a whole state: the last one it saved. Random numbers follow from the seed and the number of
the step, so the number is all that is stored of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from torch import Tensor
from torch.optim import Optimizer

from editors.data.atomic_files import write_atomically
from editors.weights.tensor_files import read_tensors, tensor_bytes
from pipeline.domain.errors import IntegrityBroken

KIND = "training"
REMEMBERED = ("step", "exp_avg", "exp_avg_sq")
"""What Adam remembers of a parameter: a number, and two tensors of its shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is, and how well it has done."""

    step: int = 0
    """Steps made so far, skipped ones too."""
    num_edits: int = 0
    """Edits in all of these steps together."""
    num_skipped: int = 0
    """Steps that changed nothing because a number was not finite."""
    best_step: int = 0
    """Steps made when the best validation came."""
    best_score: float | None = None
    """Score of the best validation; None before the first one."""
    best_figures: dict[str, float] | None = None
    """Figures of the best validation; None before the first one."""
    figures: dict[str, float] | None = None
    """Figures of the last validation; None before the first one."""
    seconds: float = 0.0
    """Time of a run with a budget of time, with its validations; 0 of others."""
    num_stale: int = 0
    """Validations since the best one."""

    def validated(self, figures: Mapping[str, float], score: float) -> Progress:
        """Return the progress after a validation; a score that is NaN or infinite is never the best."""
        found = dict(figures)
        if math.isfinite(score) and (self.best_score is None or score > self.best_score):
            best = replace(self, best_step=self.step, best_score=score, best_figures=found)
            return replace(best, figures=found, num_stale=0)
        return replace(self, figures=found, num_stale=self.num_stale + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """Everything that the steps to come depend on."""

    progress: Progress
    """How far the run is."""
    objective: dict[str, Tensor]
    """Tensors of `Objective.state`, by name."""
    optimizer: dict[str, Tensor]
    """Adam's memory as `optimizer_tensors` gives it, by name."""

    def save(self, path: Path) -> None:
        """Replace the file at `path`: whoever reads it sees the old state or the new one."""
        tensors = {f"objective/{name}": tensor for name, tensor in self.objective.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.items()}
        write_atomically(path, tensor_bytes(tensors, {"kind": KIND, "progress": asdict(self.progress)}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a state from its file.

        Raises:
            IntegrityBroken: if the file is no training state.
        """
        tensors, facts = read_tensors(path, KIND)
        try:
            progress = TypeAdapter(Progress).validate_python(facts["progress"])
        except (KeyError, ValueError) as error:
            raise IntegrityBroken(f"expected a training state in {path}, got one without progress: {error}") from error
        return cls(
            progress=progress,
            objective=_part(tensors, "objective/"),
            optimizer=_part(tensors, "optimizer/"),
        )


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers, under names of the form `PARAMETER/KIND`, such as `0/exp_avg`."""
    memory: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{place}/{kind}": tensor for place, kinds in memory.items() for kind, tensor in kinds.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer of the same parameters the memory that `optimizer_tensors` returned.

    Raises:
        IntegrityBroken: if that is not what Adam remembers of these parameters.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    places = {name.partition("/")[0] for name in tensors}
    wanted = {
        f"{place}/{kind}": () if kind == "step" else tuple(one.shape)
        for place, one in enumerate(parameters)
        for kind in REMEMBERED
        if str(place) in places
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := {name for name, _ in found.items() ^ wanted.items()}:
        raise IntegrityBroken(f"expected Adam's memory of the parameters in a training state, got another {min(wrong)}")
    document: dict[str, Any] = optimizer.state_dict()
    memory: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, kind = name.split("/")
        memory.setdefault(int(place), {})[kind] = tensor.clone()
    optimizer.load_state_dict(document | {"state": memory})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
