"""Training of many facts into the edited weights at once, with little change elsewhere: what a fold does.

A ledger holds facts by their keys, and each makes the weights stiffer for the next. Here all facts are learnt together,
by descent, in every frame in which they may be asked. Text and guards hold what is not asked:

    S = (C / c + eps)^-1/2  Z  (G / g + eps)^-1/2
    loss = NLL(targets) + c_text KL(base || now on text) + c_guards KL(base || now where guards are asked)

Guards are other subjects in an edit's own prompt (see `frames`): what is said of them stays. C and G are the prior's
moments of keys and gradients, c and g their mean diagonals: a step in Z goes far where text has no keys and no
gradients, and hardly anywhere else (K-FAC, Martens and Grosse, ICML 2015). S begins at what the ledger's rows of these
facts ask for together, and at 0 where there are none.

Legend: I in_features, O out_features, N target tokens.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from editors.measure.losses import (
    MAX_READINGS,
    TEXT_TOKENS,
    Reading,
    divergences,
    edit_loss,
    rows_of,
    target_log_probability,
)
from editors.measure.scoring import prepare, readings
from editors.methods.base import EditJob, EditResult
from editors.methods.frames import frames_of
from editors.models.families import EditableModel
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded
from editors.solve.prior import Prior
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta, factors_of
from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.ranges import SEED, Range, require_within
from pipeline.domain.rank_api import EditorSettings, tell

MOMENTUM, SQUARES = 0.9, 0.99
"""What is kept of the means of gradients and of their squares in a step."""
TINY = torch.finfo(torch.float32).tiny
"""Where nothing pulls, nothing goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folding:
    """How facts are folded in."""

    learning_rate: float = 2e-4
    """How far an entry of Z goes in a step, in the root of the mean square."""
    num_rounds: int = 12
    """Most rounds over the frames; a fold ends before when every frame is probable enough."""
    batch: int = 32
    """Frames of a step."""
    num_text: int = 8
    """Lines of text of a step."""
    c_text: float = 30.0
    """Weight of the divergence on text."""
    num_guards: int = 16
    """Guards of a step."""
    c_guards: float = 3.0
    """Weight of the divergence where guards are asked."""
    stop_at: float = 0.7
    """Probability of a target token from which it adds nothing to the loss."""
    eps: float = 0.01
    """What is added to moments, as a share of their mean diagonal: how much further a step may go where text is not."""
    seed: int = 0
    """Seed of the order of frames and lines."""

    def __post_init__(self) -> None:
        """Refuse what nothing can be learnt by.

        Raises:
            Misconfigured: naming the first setting that is out of its range.
        """
        require_within(self, FOLDING_RANGES, "a fold")


FOLDING_RANGES = {
    **dict.fromkeys(("num_rounds", "batch"), Range(least=1, is_whole=True)),
    **dict.fromkeys(("num_text", "num_guards"), Range(is_whole=True)),
    **dict.fromkeys(("learning_rate", "c_text", "c_guards", "eps"), Range()),
    "stop_at": Range(is_above=True, most=1),
    "seed": SEED,
}
"""Constant of a fold -> what it may be."""


class FoldEditor:
    """Learns all edits of a job from the base, in many frames each; an `Editor` that leaves no rows.

    The ledger of the job may have rows of the edits that are learnt: what they ask for is where it begins.

    Args:
        settings: how facts are folded in.
        text: lines that have to stay.
        use: which frames an edit has.
    """

    keeps_ledger: ClassVar[bool] = False

    def __init__(self, settings: Folding, text: Sequence[str], use: EditorSettings) -> None:
        self._settings, self._text = settings, text
        self._use = replace(use, frames_per_pass=max(use.frames_per_pass, 1))

    def edit(self, job: EditJob) -> EditResult:
        """Descend until every frame of every edit is probable enough, or the rounds are used up.

        Raises:
            Misconfigured: if the weights hold edits already, as facts are learnt from the pristine base only, or if
                the ledger has edits that are not learnt.
        """
        job.require_additions("fold")
        if any(bool(job.weights.shift(name).any()) for name in job.model.inner_param_names):
            raise Misconfigured("expected the pristine base to fold into, got weights that hold edits")
        if strange := set(job.ledger.edit_ids).difference(edit.edit_id for edit in job.added):
            raise Misconfigured(f"expected a ledger of the edits that are folded, got edit {min(strange)} in it")
        began, model = time.perf_counter(), job.model
        found = [frames_of(model, edit, self._use, job.guards.get(edit.edit_id, ())) for edit in job.added]
        lines = [model.encode_text(line, max_tokens=TEXT_TOKENS) for line in self._text if line.strip()]
        roots = {name: _roots(job.ledger.prior, name, self._settings.eps) for name in model.inner_param_names}
        begun = {name: job.ledger.shift(name) for name in roots} if job.ledger.edit_ids else {}
        change, num_rounds = _Descent(model, roots, begun, self._settings).run(
            [frame for frames in found for frame in frames.asked],
            [
                _Held(sequences=lines, most=self._settings.num_text, weight=self._settings.c_text),
                _Held(
                    sequences=[guard for frames in found for guard in frames.guards],
                    most=self._settings.num_guards,
                    weight=self._settings.c_guards,
                ),
            ],
        )
        return EditResult(
            delta=WeightDelta.of(change),
            rows=EditRows(keys={}, targets={}, ranges={}),
            removed_ids=(),
            num_passes=num_rounds,
            seconds={"capture": time.perf_counter() - began, "solve": 0.0},
            jitter={},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """Sequences on which the model has to say what the base says."""

    sequences: Sequence[Encoded]
    most: int
    """Sequences of a step."""
    weight: float
    """Weight of their divergence."""


class _Descent:
    """Descent of Z of each inner parameter, whose S is a side branch: no weight is written.

    Args:
        model: holds the base's weights.
        roots: inner parameter -> the inverse roots of its moments, I x I and O x O.
        begun: inner parameter -> S where it begins, I x O; 0 for those that are left out.
        settings: how facts are folded in.
    """

    def __init__(
        self,
        model: EditableModel,
        roots: Mapping[str, tuple[Tensor, Tensor]],
        begun: Mapping[str, Tensor],
        settings: Folding,
    ) -> None:
        self._model, self._settings = model, settings
        self._before: dict[Encoded, Reading] = {}
        self._roots = {name: tuple(root.to(model.device) for root in pair) for name, pair in roots.items()}
        self._z = {
            name: _divided(begun[name].to(model.device), left, right)
            if name in begun
            else torch.zeros(len(left), len(right), device=model.device)
            for name, (left, right) in self._roots.items()
        }
        self._paces = {name: _Pace(z_IO, settings.learning_rate) for name, z_IO in self._z.items()}
        self._draw = random.Random(settings.seed)  # noqa: S311

    def run(self, frames: Sequence[Encoded], held: Sequence[_Held]) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
        """Return the change as factors, and how many rounds led there.

        A frame that is probable enough rests for a round, and whoever rests is asked once more before the end.
        """
        frames, resting = list(dict.fromkeys(frames)), set[Encoded]()
        for number in range(self._settings.num_rounds):
            asked = [frame for frame in frames if frame not in resting]
            reached = self._round(f"learning the facts, round {number + 1}, step", asked, held)
            if len(reached) == len(frames):
                return self._change(), number + 1
            resting = reached if len(reached) < len(asked) else set()
        return self._change(), self._settings.num_rounds

    def _round(self, what: str, frames: Sequence[Encoded], held: Sequence[_Held]) -> set[Encoded]:
        """Take the steps of a round; return the frames that were probable enough when they were asked."""
        order, size, reached = self._draw.sample(frames, len(frames)), self._settings.batch, set[Encoded]()
        for step, start in enumerate(range(0, len(order), size), start=1):
            tell(what, step, -(-len(order) // size))
            branches = self._branches()
            reached |= self._learn(order[start : start + size], branches)
            for kind in held:
                drawn = self._draw.sample(kind.sequences, min(kind.most, len(kind.sequences)))
                self._hold(drawn, kind.weight, branches)
            for name, (left_II, _) in self._roots.items():
                # What sequences pull at is the product with Z, so Z is multiplied once a step and not once a forward.
                pull_IO = branches[name][0].grad
                assert pull_IO is not None, "expected each inner parameter to take part in what was asked"
                self._z[name] -= self._paces[name].step(left_II.T @ pull_IO)
        return reached

    def _branches(self) -> dict[str, Branch]:
        return {
            name: ((left_II @ self._z[name]).requires_grad_(), right_OO)
            for name, (left_II, right_OO) in self._roots.items()
        }

    def _change(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return S of each inner parameter as factors."""
        return {
            name: factors_of((left_IO @ right_OO).detach()) for name, (left_IO, right_OO) in self._branches().items()
        }

    def _learn(self, frames: Sequence[Encoded], branches: Mapping[str, Branch]) -> set[Encoded]:
        """Add the gradients of the targets' loss; return the frames all of whose target tokens are probable enough."""
        aim, reached = math.log(self._settings.stop_at), set[Encoded]()
        for places, batch in self._model.chunked(frames):
            with torch.enable_grad(), side_branch(self._model.module, branches):
                log_N = target_log_probability(self._model.target_logits(batch), batch)
                torch.autograd.backward(edit_loss(log_N.clamp(max=aim), batch) / len(frames))
            enough = (log_N.detach() >= aim).cpu()
            reached |= {frames[place] for place, row in zip(places, rows_of(batch), strict=False) if enough[row].all()}
        return reached

    def _hold(self, sequences: Sequence[Encoded], weight: float, branches: Mapping[str, Branch]) -> None:
        """Add the gradients of what has changed of what is said along some sequences."""
        for places, batch in self._model.chunked(sequences) if sequences else ():
            before = self._of_base([sequences[place] for place in places])
            with torch.enable_grad(), side_branch(self._model.module, branches):
                log_NV = self._model.target_logits(batch).float().log_softmax(dim=1)
                share = len(places) / len(sequences)
                torch.autograd.backward(weight * share * divergences(before, log_NV).mean())

    def _of_base(self, sequences: Sequence[Encoded]) -> Reading:
        """Return what the base says along some sequences, which is kept of those that were asked last."""
        new = [sequence for sequence in sequences if sequence not in self._before]
        if new:
            self._before |= zip(new, readings(self._model, prepare(self._model, new)), strict=True)
        found = Reading.joined([self._before[sequence] for sequence in sequences])
        while len(self._before) > MAX_READINGS:
            del self._before[next(iter(self._before))]
        return found


class _Pace:
    """Adam with one second moment for all of a matrix (Kingma and Ba, ICLR 2015).

    With one for each entry, those that hardly matter go as far as the others, and what they do adds up on text.
    """

    def __init__(self, z_IO: Tensor, learning_rate: float) -> None:
        self._rate, self._num_steps = learning_rate, 0
        self._mean_IO, self._square = torch.zeros_like(z_IO), torch.zeros((), device=z_IO.device)

    def step(self, gradient_IO: Tensor) -> Tensor:
        """Return what a step takes off, I x O."""
        self._num_steps += 1
        self._mean_IO.lerp_(gradient_IO, 1 - MOMENTUM)
        self._square.lerp_(gradient_IO.square().mean(), 1 - SQUARES)
        square = self._square / (1 - math.pow(SQUARES, self._num_steps))
        rate: float = self._rate / (1 - math.pow(MOMENTUM, self._num_steps)) / max(float(square) ** 0.5, TINY)
        return self._mean_IO * rate


def _divided(shift_IO: Tensor, left_II: Tensor, right_OO: Tensor) -> Tensor:
    """Return the Z of which S is a shift, I x O, fp32; roots are symmetric."""
    half_IO = torch.linalg.solve(left_II.double(), shift_IO.double())
    whole_OI: Tensor = torch.linalg.solve(right_OO.double(), half_IO.T)
    return whole_OI.T.float().contiguous()


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
