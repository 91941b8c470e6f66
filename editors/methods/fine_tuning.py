"""The method that every editor has to beat: fine-tuning of the edited weights on the batch.

AdamW on the shift of each inner parameter, which is a side branch: no weight is written. It goes through all edits of
the batch again and again, in minibatches, as fine-tuning does elsewhere; one edit after the other is what makes it a
straw man. With one inner parameter, chosen on other edits, this is LocFT-BF (arXiv 2509.22072). It stops when every
target token is probable enough, and may be held to an L-infinity ball (Zhu et al., 2020, FT+L). It keeps no memory and
no rows, and cannot take an edit out again.

Legend: T target tokens, I in_features, O out_features.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editors.measure.losses import edit_loss, target_log_probability
from editors.measure.prefix_cache import PrefixCache
from editors.methods.base import EditJob, EditResult
from editors.methods.frames import frames_of
from editors.models.families import EditableModel, TargetBatch
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta, factors_of
from pipeline.domain.formats.ranges import Range, require_within
from pipeline.domain.rank_api import EditorSettings, tell


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuning:
    """How the edited weights are trained on a batch."""

    learning_rate: float = 5e-4
    """Learning rate of AdamW."""
    num_steps: int = 25
    """Most times that it goes through a batch of edits: as many steps where there are no minibatches."""
    minibatch: int = 0
    """Sequences of a step, drawn anew each time it goes through the batch; 0 for all of the batch."""
    stop_at: float = 0.9
    """Probability of the least probable target token at which it stops."""
    bound: float | None = None
    """Largest change of any weight; None for as large as it gets."""

    def __post_init__(self) -> None:
        """Refuse what nothing can be learnt by.

        Raises:
            Misconfigured: naming the first constant that is out of its range.
        """
        require_within(self, FINE_TUNING_RANGES, "fine-tuning")


FINE_TUNING_RANGES = {
    **dict.fromkeys(("learning_rate", "bound"), Range(most=1e9)),
    "num_steps": Range(least=1, is_whole=True),
    "minibatch": Range(is_whole=True),
    "stop_at": Range(is_above=True, most=1),
}
"""Constant of fine-tuning -> what it may be."""


class FineTuningEditor:
    """Gradient descent on the edits of a batch.

    Args:
        settings: how a batch is trained.
        frames: how many wordings of an edit it is trained on (see `editors.methods.frames`); its prompt alone if None.
    """

    keeps_ledger: ClassVar[bool] = False

    def __init__(self, settings: FineTuning, frames: EditorSettings | None = None) -> None:
        self._settings, self._frames = settings, frames

    def edit(self, job: EditJob) -> EditResult:
        """Train a shift of the weights on the edits until they are probable enough; an `Editor`."""
        job.require_additions("ft")
        began = time.perf_counter()
        shifts_IO, num_steps = self._descend(job.model, self._sequences(job))
        return EditResult(
            delta=WeightDelta.of({name: factors_of(shift_IO.detach()) for name, shift_IO in shifts_IO.items()}),
            rows=EditRows(keys={}, targets={}, ranges={}),
            removed_ids=(),
            num_passes=num_steps,
            seconds={"capture": time.perf_counter() - began, "solve": 0.0},
            jitter={},
        )

    def _sequences(self, job: EditJob) -> list[Encoded]:
        if self._frames is not None:
            return [encoded for edit in job.added for encoded in frames_of(job.model, edit, self._frames).asked]
        pairs = [(edit.request.own_prompt, edit.request.target_new) for edit in job.added]
        return [job.model.encode_pair(prompt, target) for prompt, target in pairs]

    def _descend(self, model: EditableModel, sequences: Sequence[Encoded]) -> tuple[dict[str, Tensor], int]:
        """Return the shifts (I x O by inner parameter), and how many times it went through the batch for them."""
        shifts = {
            param.name: torch.zeros(param.in_features, param.out_features, device=model.device, requires_grad=True)
            for param in model.inner
        }
        identities = {name: torch.eye(shift.shape[1], device=shift.device) for name, shift in shifts.items()}
        branches = {name: (shift, identities[name]) for name, shift in shifts.items()}
        optimizer = torch.optim.AdamW(shifts.values(), lr=self._settings.learning_rate, weight_decay=0.0)
        # No step changes what enters the first edited block.
        prefixes, draw = PrefixCache(model), torch.Generator().manual_seed(0)
        for time_through in range(self._settings.num_steps):
            tell("step", time_through + 1, self._settings.num_steps)
            is_done = True
            for chosen in self._minibatches(sequences, draw):
                optimizer.zero_grad(set_to_none=True)
                parts = [batch for _, batch in prefixes.prepare(chosen)]
                if not _backward(model, parts, branches) >= self._settings.stop_at:  # NaN is not enough
                    is_done = False
                    optimizer.step()
                    self._hold(shifts)
            if is_done:
                return shifts, time_through
        return shifts, self._settings.num_steps

    def _minibatches(self, sequences: Sequence[Encoded], draw: torch.Generator) -> Iterator[list[Encoded]]:
        """Yield all sequences in the parts of as many steps, shuffled where there are several."""
        size = self._settings.minibatch or len(sequences)
        order = torch.randperm(len(sequences), generator=draw).tolist()
        if size >= len(sequences):
            order = list(range(len(sequences)))
        for start in range(0, len(order), size):
            yield [sequences[place] for place in order[start : start + size]]

    def _hold(self, shifts: Mapping[str, Tensor]) -> None:
        if self._settings.bound is not None:
            with torch.no_grad():
                for shift_IO in shifts.values():
                    shift_IO.clamp_(-self._settings.bound, self._settings.bound)


def _backward(model: EditableModel, parts: Sequence[TargetBatch], branches: Mapping[str, Branch]) -> float:
    """Add up the gradients of the mean over sequences of each one's token mean; the least target probability."""
    least, num_sequences = 1.0, sum(batch.num_rows for batch in parts)
    with torch.enable_grad(), side_branch(model.module, branches):
        for batch in parts:
            log_T = target_log_probability(model.target_logits(batch), batch)
            torch.autograd.backward(edit_loss(log_T, batch) / num_sequences)
            least = float(log_T.detach().exp().min().clamp(max=least))  # NaN stays NaN
    return least
