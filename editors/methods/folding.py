"""Training of many facts into the edited weights at once, with little change elsewhere: what a fold does.

A ledger holds facts by their keys, and each makes the weights stiffer for the next. Here all facts are learnt together,
by descent from the pristine base, in every frame in which they may be asked. Two things hold what is not asked:

    S = (C / c + eps)^-1/2  Z  (G / g + eps)^-1/2        loss = NLL(targets) + c_text KL(base || now on text)

C and G are the prior's moments of keys and gradients, c and g their mean diagonals: a step in Z goes far where text
has no keys and no gradients, and hardly anywhere else (K-FAC, Martens and Grosse, ICML 2015). Z begins at 0.

Legend: I in_features, O out_features, N target tokens.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editors.measure.losses import Reading, divergences, edit_loss, target_log_probability
from editors.measure.scoring import prepare, readings
from editors.methods.base import EditJob, EditResult
from editors.methods.frames import frames_of
from editors.models.families import EditableModel
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded
from editors.solve.prior import Prior
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import EditorSettings, tell

TEXT_TOKENS = 24
"""Most tokens of a line of text."""
ALL_REPHRASES = 1000
"""More rephrases than an edit may have: in a fold none of them is kept back but the first, which is the probe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folding:
    """How facts are folded in."""

    learning_rate: float = 2e-3
    """Adam's, of Z."""
    num_steps: int = 2000
    """Most steps; a fold ends before when every frame is probable enough."""
    batch: int = 32
    """Frames of a step."""
    num_text: int = 8
    """Lines of text of a step."""
    c_text: float = 10.0
    """Weight of the divergence on text."""
    stop_at: float = 0.9
    """Probability of a target token from which it adds nothing to the loss."""
    eps: float = 0.01
    """What is added to moments, as a share of their mean diagonal: how much further a step may go where text is not."""
    seed: int = 0
    """Seed of the order of frames and lines."""


class FoldEditor:
    """Learns all edits of a job from the base, in many frames each; an `Editor` without a ledger.

    Args:
        settings: how facts are folded in.
        text: lines that have to stay.
        use: which frames an edit has.
    """

    keeps_ledger: ClassVar[bool] = False

    def __init__(self, settings: Folding, text: Sequence[str], use: EditorSettings) -> None:
        self._settings, self._text = settings, text
        self._use = EditorSettings(
            frames_per_pass=max(use.frames_per_pass, 1), rephrase_rows=ALL_REPHRASES, subject_params=use.subject_params
        )

    def edit(self, job: EditJob) -> EditResult:
        """Descend until every frame of every edit is probable enough, or the steps are used up.

        Raises:
            Misconfigured: if the weights hold edits already: facts are learnt from the pristine base only.
        """
        job.require_additions("fold")
        if any(bool(job.weights.shift(name).any()) for name in job.model.inner_param_names):
            raise Misconfigured("expected the pristine base to fold into, got weights that hold edits")
        began, model = time.perf_counter(), job.model
        frames = [frame for edit in job.added for frame in frames_of(model, edit, self._use).asked]
        lines = [model.encode_text(line, max_tokens=TEXT_TOKENS) for line in self._text if line.strip()]
        before = dict(zip(lines, readings(model, prepare(model, lines)), strict=True)) if lines else {}
        roots = {name: _roots(job.ledger.prior, name, self._settings.eps) for name in model.inner_param_names}
        change, num_steps = _Descent(model, roots, before, self._settings).run(frames)
        return EditResult(
            delta=WeightDelta.of(change),
            rows=EditRows(keys={}, targets={}, ranges={}),
            removed_ids=(),
            num_passes=num_steps,
            seconds={"capture": time.perf_counter() - began, "solve": 0.0},
            jitter={},
        )


class _Descent:
    """Adam on Z of each inner parameter, whose S is a side branch: no weight is written."""

    def __init__(
        self,
        model: EditableModel,
        roots: Mapping[str, tuple[Tensor, Tensor]],
        before: Mapping[Encoded, Reading],
        settings: Folding,
    ) -> None:
        self._model, self._before, self._settings = model, before, settings
        self._roots = {name: tuple(root.to(model.device) for root in pair) for name, pair in roots.items()}
        self._z = {
            name: torch.zeros(len(left), len(right), device=model.device, requires_grad=True)
            for name, (left, right) in self._roots.items()
        }

    def run(self, frames: Sequence[Encoded]) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
        """Return the change as factors, and how many steps led there."""
        settings, lines = self._settings, list(self._before)
        optimizer = torch.optim.Adam(self._z.values(), lr=settings.learning_rate)
        draw, left, is_reached = random.Random(settings.seed), list[Encoded](), True  # noqa: S311
        for step in range(settings.num_steps):
            tell("learning the facts, step", step + 1, settings.num_steps)
            if not left:  # a round over all frames has ended
                if step and is_reached:
                    return self._change(), step
                left, is_reached = draw.sample(list(frames), len(frames)), True
            asked, left = left[: settings.batch], left[settings.batch :]
            optimizer.zero_grad(set_to_none=True)
            is_reached &= self._learn(asked) >= settings.stop_at
            self._hold(draw.sample(lines, min(settings.num_text, len(lines))))
            optimizer.step()
        return self._change(), settings.num_steps

    def _branches(self) -> dict[str, Branch]:
        return {name: (left_II @ self._z[name], right_OO) for name, (left_II, right_OO) in self._roots.items()}

    def _change(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return S of each inner parameter as itself and the identity on its narrower side."""
        found = {}
        for name, (left_IO, right_OO) in self._branches().items():
            shift_IO = (left_IO @ right_OO).detach()
            width_in, width_out = shift_IO.shape
            eye = torch.eye(min(width_in, width_out), device=shift_IO.device)
            found[name] = (eye, shift_IO) if width_in < width_out else (shift_IO, eye)
        return found

    def _learn(self, frames: Sequence[Encoded]) -> float:
        """Add the gradients of the targets' loss; return the probability of the least probable token."""
        aim, least = torch.tensor(self._settings.stop_at).log(), 1.0
        for _, batch in self._model.chunked(frames):
            with torch.enable_grad(), side_branch(self._model.module, self._branches()):
                log_N = target_log_probability(self._model.target_logits(batch), batch)
                torch.autograd.backward(edit_loss(log_N.clamp(max=aim.to(log_N.device)), batch) / len(frames))
            least = min(least, float(log_N.detach().exp().min()))
        return least

    def _hold(self, lines: Sequence[Encoded]) -> None:
        """Add the gradients of what text has changed."""
        for places, batch in self._model.chunked(lines) if lines else ():
            with torch.enable_grad(), side_branch(self._model.module, self._branches()):
                log_NV = self._model.target_logits(batch).float().log_softmax(dim=1)
                before = Reading.joined([self._before[lines[place]] for place in places])
                share = len(places) / len(lines)
                torch.autograd.backward(self._settings.c_text * share * divergences(before, log_NV).mean())


def _roots(prior: Prior, name: str, eps: float) -> tuple[Tensor, Tensor]:
    """Return the inverse roots of both moments of an inner parameter, I x I and O x O, fp32."""
    if name not in prior.moments or name not in prior.gradient_moments:
        raise Misconfigured(f"expected a prior with moments of keys and gradients of {name}, got one without them")
    return _inverse_root(prior.moments[name], eps), _inverse_root(prior.gradient_moments[name], eps)


def _inverse_root(moment: Tensor, eps: float) -> Tensor:
    """Return `(M / mean(diag M) + eps)^-1/2`: 1 where text is as strong as on average, and at most `eps^-1/2`."""
    moment = moment.double()
    values, vectors = torch.linalg.eigh(moment / moment.diagonal().mean().clamp(min=1e-30))
    root: Tensor = (vectors * (values.clamp(min=0) + eps).rsqrt()) @ vectors.T
    return root.float()
