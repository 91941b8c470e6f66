"""The training loop: steps, validations, the best editor so far, and going on after a kill.

A run that was killed and resumed gives the bits of one that nothing stopped. For that every step draws its random
numbers from the seed and its own number, and the state that is saved holds all tensors that later steps depend on.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from editors.mend.checkpoint import TrainedEditor
from editors.models.comm import ALONE, Comm
from editors.training.objective import LOSS, SCORE, Losses, Objective
from editors.training.run_folder import BEST, LAST, TrainingFolder
from editors.training.state import Progress, TrainingState, optimizer_tensors, restore_optimizer
from pipeline.domain.errors import EditorFailed, EngineFailed
from pipeline.domain.formats.canonical import sha256_blocks

MakeEditor = Callable[[Mapping[str, float], int], TrainedEditor]
"""(validation figures, steps) -> the editor as it is now."""
MAX_SKIPPED_IN_A_ROW = 50
"""Skipped steps after which a run is given up."""
SECONDS_BETWEEN_CURVES = 10.0
"""At least so long a run goes on before its curve is drawn anew: a picture takes as long as many steps of a small base.
The last one is drawn at the end."""
COSINE_FLOOR = 0.05
"""Where a cosine schedule ends, as a fraction of the learning rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How steps are made and judged. The default of `max_norm` is the MEND paper's."""

    num_steps: int = 2500
    """Most steps of the run."""
    validate_every: int = 100
    """Steps between two validations."""
    save_every: int = 25
    """Steps between two saved states: the most that a kill can cost."""
    patience: int = 10
    """Validations without a better score after which the run ends."""
    max_norm: float = 100.0
    """Norm to which the gradient is clipped."""
    warmup_steps: int = 0
    """Steps over which the learning rates rise from 0."""
    is_cosine: bool = False
    """Whether the learning rates then fall along a cosine until the last step."""
    minutes: float = 0.0
    """Time after which the run ends and to which the cosine falls, if that comes before the last step; 0 for none."""
    seed: int = 0
    """Seed of the data's order and of whatever an episode draws."""

    def share_done(self, step: int, seconds: float) -> float:
        """Return how far a run is, from 0 to 1, by its steps or by its time, whichever is further."""
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        by_steps = step / self.num_steps if self.num_steps else 1.0
        return min(1.0, max(by_steps, by_time))

    def lr_factor(self, step: int, seconds: float = 0.0) -> float:
        """Return the factor of the learning rates in a step, counted from 0, after so many seconds of a timed run."""
        rising = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if not self.is_cosine:
            return rising
        falling = (1 + math.cos(math.pi * self.share_done(step, seconds))) / 2
        return rising * (COSINE_FLOOR + (1 - COSINE_FLOOR) * falling)


class Watcher(Protocol):
    """Shows a run to whoever waits for it."""

    def stepped(self, step: int, num_edits: int, figures: Mapping[str, float]) -> None:
        """Show a step, counted from 1, with the edits in it and its losses."""
        ...

    def validated(self, step: int, figures: Mapping[str, float], *, is_best: bool) -> None:
        """Show the figures of a validation after so many steps."""
        ...


class TrainingRun:
    """Trains an objective.

    Ranks that hold the base together all make the same steps: each solves, transforms and takes Adam's steps by itself,
    from what all of them gathered. Only the first one gets a folder and a watcher.

    Args:
        objective: what is trained.
        settings: how steps are made and judged.
        folder: where the run is kept, opened; None on ranks that keep nothing.
        make_editor: makes an editor of what the objective holds now.
        watcher: shows the run; None on ranks that show nothing.
        comm: the ranks that hold the base together.
    """

    def __init__(
        self,
        objective: Objective,
        settings: LoopSettings,
        folder: TrainingFolder | None,
        *,
        make_editor: MakeEditor,
        watcher: Watcher | None,
        comm: Comm = ALONE,
    ) -> None:
        self._objective, self._settings, self._folder, self._comm = objective, settings, folder, comm
        self._make_editor, self._watcher = make_editor, watcher
        groups = objective.groups()
        self._rates = [group["lr"] for group in groups]
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._optimizer = torch.optim.Adam(groups)
        self._why_skipped = ""
        self._clock = 0.0
        self._drawn_at = 0.0

    def run(self, state: TrainingState | None) -> Progress:
        """Train from a state, or from the beginning, until the steps or the patience are used up.

        Raises:
            EditorFailed: if step after step has to be skipped.
            EngineFailed: if the ranks hold different editors.
        """
        self._clock, self._drawn_at = time.monotonic(), time.perf_counter()
        progress = self._begun() if state is None else self._resumed(state)
        in_a_row = 0
        while not self._is_over(progress) and progress.num_stale < self._settings.patience:
            skipped = progress.num_skipped
            progress = self._stepped(progress)
            in_a_row = in_a_row + 1 if progress.num_skipped > skipped else 0
            if in_a_row == MAX_SKIPPED_IN_A_ROW:
                skipped_steps = f"skipped {in_a_row} steps in a row up to {progress.step}"
                raise EditorFailed(f"expected finite numbers, {skipped_steps}; the last: {self._why_skipped}")
            if self._is_over(progress) or progress.step % self._settings.validate_every == 0:
                progress = self._validated(progress)
            elif progress.step % self._settings.save_every == 0:
                self._save(progress)
        if self._folder:
            self._folder.draw()
        return progress

    def _is_over(self, progress: Progress) -> bool:
        return self._settings.share_done(progress.step, progress.seconds) >= 1

    def _begun(self) -> Progress:
        self._seed(-1)
        self._objective.begin()
        return self._validated(Progress())

    def _resumed(self, state: TrainingState) -> Progress:
        self._objective.restore(state.objective)
        restore_optimizer(self._optimizer, state.optimizer)
        return state.progress

    def _stepped(self, progress: Progress) -> Progress:
        began, step = time.perf_counter(), progress.step
        for group, lr in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * self._settings.lr_factor(step, progress.seconds)
        self._optimizer.zero_grad(set_to_none=True)
        losses, norm = self._backward(step)
        is_used = math.isfinite(norm)
        if is_used:
            self._optimizer.step()
        figures = finite(losses.parts) if losses else {}
        num_edits = losses.num_edits if losses else 0
        seconds = round(time.perf_counter() - began, 4)
        line: dict[str, Any] = {"step": step + 1, **figures, "edits": num_edits, "seconds": seconds}
        if self._folder:
            self._folder.log(
                line | ({"gradient_norm": norm} if is_used else {"skipped": True, "why": self._why_skipped})
            )
        if self._watcher:
            self._watcher.stepped(step + 1, num_edits, figures)
        return replace(
            progress,
            step=step + 1,
            seconds=self._counted(progress),
            num_edits=progress.num_edits + num_edits,
            num_skipped=progress.num_skipped + (not is_used),
        )

    def _counted(self, progress: Progress) -> float:
        """Return the time of a timed run: what was counted before, and what has passed since it was last counted."""
        if not self._settings.minutes:
            return 0.0
        last, self._clock = self._clock, time.monotonic()
        passed = self._comm.gathered(self._clock - last)[0]  # the first rank's, so that all of them end together
        return progress.seconds + passed

    def _backward(self, step: int) -> tuple[Losses | None, float]:
        """Return the losses and the norm of their gradient, which is clipped; NaN for a step that has to be skipped."""
        try:
            losses = self._objective.episode(step, self._seed(step))
        except EditorFailed as error:
            self._why_skipped = str(error)
            return None, math.nan
        self._why_skipped = "the loss or its gradient is not finite"
        losses.total.backward()  # type: ignore[no-untyped-call]
        norm = float(clip_grad_norm_(self._parameters, self._settings.max_norm))
        is_finite = math.isfinite(float(losses.total.detach())) and math.isfinite(losses.parts.get(LOSS, 0.0))
        return losses, norm if is_finite else math.nan

    def _validated(self, progress: Progress) -> Progress:
        self._require_same_on_all_ranks()
        self._seed(progress.step)
        found = self._objective.validate()
        figures = finite(found)
        progress = progress.validated(figures, found[SCORE])
        is_best = progress.num_stale == 0
        if self._folder:
            self._folder.log({"step": progress.step, "validation": figures, "best": is_best})
            if is_best:
                self._folder.save_editor(BEST, self._make_editor(figures, progress.step))
        self._save(progress)
        if self._folder and time.perf_counter() - self._drawn_at >= SECONDS_BETWEEN_CURVES:
            self._folder.draw()
            self._drawn_at = time.perf_counter()
        if self._watcher:
            self._watcher.validated(progress.step, figures, is_best=is_best)
        return progress

    def _require_same_on_all_ranks(self) -> None:
        if self._comm.num_ranks == 1:
            return
        found = self._comm.gathered(_digest(self._objective.state()))
        if len(set(found)) > 1:
            raise EngineFailed(
                f"expected every rank to hold the same editor, got {', '.join(one[:12] for one in found)}"
            )

    def _save(self, progress: Progress) -> None:
        if self._folder is None:
            return
        # The state comes last: a resume goes on from it and makes again whatever was written after it.
        self._folder.save_editor(LAST, self._make_editor(progress.figures or {}, progress.step))
        state = TrainingState(
            progress=progress, objective=self._objective.state(), optimizer=optimizer_tensors(self._optimizer)
        )
        self._folder.save_state(state)

    def _seed(self, step: int) -> random.Random:
        """Return the step's own random numbers, and let torch's depend on the step alone too."""
        rng = random.Random(f"{self._settings.seed} {step}")  # noqa: S311 - reproducible by design, no secret
        torch.manual_seed(rng.getrandbits(63))
        return rng


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures without those that are NaN or infinite, which JSON cannot hold."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _digest(state: Mapping[str, Tensor]) -> str:
    return sha256_blocks(
        block
        for name, tensor in sorted(state.items())
        for block in (name.encode(), tensor.detach().cpu().contiguous().numpy().tobytes())
    )
