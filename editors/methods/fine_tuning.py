"""The method that every editor has to beat: fine-tuning of the edited weights on the batch.

AdamW on the shift of each inner parameter, which is a side branch: no weight is written. It stops when every target
token is probable enough, and may be held to an L-infinity ball (Zhu et al., 2020, FT+L). It keeps no memory and no
rows, and cannot take an edit out again.

Legend: T target tokens, I in_features, O out_features.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editors.measure.losses import edit_loss, target_log_probability
from editors.measure.scoring import prepare
from editors.methods.base import EditJob, EditResult
from editors.models.families import EditableModel, TargetBatch
from editors.models.hooks import Branch, side_branch
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuning:
    """How the edited weights are trained on a batch."""

    learning_rate: float = 5e-4
    """Learning rate of AdamW."""
    num_steps: int = 25
    """Most steps on a batch."""
    stop_at: float = 0.9
    """Probability of the least probable target token at which it stops."""
    bound: float | None = None
    """Largest change of any weight; None for as large as it gets."""


class FineTuningEditor:
    """Gradient descent on the edits of a batch.

    Args:
        settings: how a batch is trained.
    """

    keeps_ledger: ClassVar[bool] = False

    def __init__(self, settings: FineTuning) -> None:
        self._settings = settings

    def edit(self, job: EditJob) -> EditResult:
        """Train a shift of the weights on the edits until they are probable enough; an `Editor`."""
        job.require_additions("ft")
        began = time.perf_counter()
        pairs = [(edit.request.own_prompt, edit.request.target_new) for edit in job.added]
        sequences = [job.model.encode_pair(prompt, target) for prompt, target in pairs]
        shifts_IO, num_steps = self._descend(job.model, [batch for _, batch in prepare(job.model, sequences)])
        return EditResult(
            delta=WeightDelta.of({name: _factors(shift_IO) for name, shift_IO in shifts_IO.items()}),
            rows=EditRows(keys={}, targets={}, ranges={}),
            removed_ids=(),
            num_passes=num_steps,
            seconds={"capture": time.perf_counter() - began, "solve": 0.0},
            jitter={},
        )

    def _descend(self, model: EditableModel, parts: Sequence[TargetBatch]) -> tuple[dict[str, Tensor], int]:
        """Return the shifts (I x O by inner parameter), and how many steps led there."""
        shifts = {
            param.name: torch.zeros(param.in_features, param.out_features, device=model.device, requires_grad=True)
            for param in model.inner
        }
        identities = {name: torch.eye(shift.shape[1], device=shift.device) for name, shift in shifts.items()}
        branches = {name: (shift, identities[name]) for name, shift in shifts.items()}
        optimizer = torch.optim.AdamW(shifts.values(), lr=self._settings.learning_rate, weight_decay=0.0)
        for step in range(self._settings.num_steps):
            optimizer.zero_grad(set_to_none=True)
            if _backward(model, parts, branches) >= self._settings.stop_at:
                return shifts, step
            optimizer.step()
            self._hold(shifts)
        return shifts, self._settings.num_steps

    def _hold(self, shifts: Mapping[str, Tensor]) -> None:
        if self._settings.bound is not None:
            with torch.no_grad():
                for shift_IO in shifts.values():
                    shift_IO.clamp_(-self._settings.bound, self._settings.bound)


def _backward(model: EditableModel, parts: Sequence[TargetBatch], branches: Mapping[str, Branch]) -> float:
    """Add up the gradients of the mean over edits of each one's token mean; the least target probability."""
    least, num_edits = 1.0, sum(batch.num_rows for batch in parts)
    with torch.enable_grad(), side_branch(model.module, branches):
        for batch in parts:
            log_T = target_log_probability(model.target_logits(batch), batch)
            torch.autograd.backward(edit_loss(log_T, batch) / num_edits)
            least = float(log_T.detach().exp().min().clamp(max=least))  # NaN stays NaN
    return least


def _factors(shift_IO: Tensor) -> tuple[Tensor, Tensor]:
    """The shift as factors of full rank, exactly: itself and the identity on its narrower side."""
    shift = shift_IO.detach()
    width_in, width_out = shift.shape
    if width_in < width_out:
        return torch.eye(width_in, device=shift.device), shift
    return shift, torch.eye(width_out, device=shift.device)
