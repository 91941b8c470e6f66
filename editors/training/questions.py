"""What an edited model is asked in an episode; the answers give the loss, and the figures that a screen shows.

Legend: N target tokens in a batch, B sequences, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import torch
from torch import Tensor

from editors.measure.losses import Reading, divergences
from editors.measure.scoring import Prepared
from editors.models.comm import merged
from editors.models.families import EditableModel, TargetBatch
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded
from editors.training.objective import LOSS, SCORE


class Prepare(Protocol):
    """Makes batches of sequences, as `examples.Reader.prepare` does."""

    def __call__(self, sequences: Sequence[Encoded], *, max_tokens: int | None = None) -> Prepared:
        """Return this rank's batches."""
        ...


BranchesOf = Callable[[Sequence[int], TargetBatch], Mapping[str, Branch]]
"""(places of a batch's rows among the questions, the batch) -> what the edits add, by inner parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Questions that count alike."""

    right_name: str
    """Figure: the share of questions whose every argmax is right."""
    loss_name: str | None
    """Figure: the mean loss; None for questions that are only shown."""
    is_target: bool
    """Whether the sequence's own target is right; otherwise it is what the base answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A sequence that an edited model is asked."""

    sequence: Encoded
    """The prompt and its target."""
    kind: Kind
    """What its answer counts as."""
    weight: float = 1.0
    """Factor of its loss in the sum over all questions, which is then divided by the number of edits."""
    edit: int = 0
    """The edit that the model has, by its number in the episode, where each has a model of its own."""


def judge(
    model: EditableModel,
    prepare: Prepare,
    questions: Sequence[Question],
    before: Mapping[Encoded, Reading],
    branches_of: BranchesOf,
    *,
    num_edits: int,
    aim: float = 0.0,
    max_tokens: int | None = None,
) -> dict[str, float]:
    """Ask an edited model and return figures, `loss` among them; every rank has to call it.

    Where gradients are on, those of the loss are left in the leaves that the branches were made from.

    Args:
        model: the base.
        prepare: makes batches of the sequences.
        questions: at least one.
        before: what the base answers to every sequence whose own target is not what is right.
        branches_of: the edits, as side branches.
        num_edits: the edits of the episode.
        aim: log-probability from which a target token adds nothing to the loss: to go further would only change more.
        max_tokens: most padded tokens of a forward.
    """
    own: dict[int, tuple[float, bool]] = {}
    for places, batch in prepare([question.sequence for question in questions], max_tokens=max_tokens):
        with side_branch(model.module, branches_of(places, batch)):
            log_NV = model.target_logits(batch).float().log_softmax(dim=1)
        asked = [questions[place] for place in places]  # a filler has rows and no places
        loss_B, is_right_B = _of_sequences(asked, batch, log_NV, before, aim=aim)
        if torch.is_grad_enabled():
            weight_B = torch.tensor([_loss_weight(question) / num_edits for question in asked], device=loss_B.device)
            # A filler has no loss, but the other ranks wait in their backward for this rank's part of the weights.
            of_batch = (weight_B * loss_B).sum() if asked else 0.0 * log_NV.sum()
            of_batch.backward()  # type: ignore[no-untyped-call]
        found = torch.stack([loss_B.detach().float(), is_right_B.float()]).tolist()  # the only wait for the device
        own |= {place: (loss, bool(right)) for place, loss, right in zip(places, *found, strict=True)}
    answers = merged(model.comm, own)
    total = sum(_loss_weight(question) * loss for question, (loss, _) in zip(questions, answers, strict=True))
    return {LOSS: total / num_edits} | _means_of_kinds(questions, answers)


def _of_sequences(
    asked: Sequence[Question], batch: TargetBatch, log_NV: Tensor, before: Mapping[Encoded, Reading], *, aim: float
) -> tuple[Tensor, Tensor]:
    """Return the loss of each sequence and whether every argmax of it is right, B each, in a few large operations."""
    device, row_N, num = log_NV.device, batch.row_N, len(asked)
    is_kept_B = torch.tensor([not question.kind.is_target for question in asked], dtype=torch.bool, device=device)
    if not num:
        return log_NV.new_zeros(0), is_kept_B
    right_N, loss_N = batch.target_N, target_losses(log_NV, batch.target_N, aim=aim)
    kept = [before[question.sequence] for question in asked if not question.kind.is_target]
    if kept:
        earlier, place_N = Reading.joined(kept), is_kept_B[row_N].nonzero()[:, 0]
        right_N = right_N.index_put((place_N,), earlier.argmax_T.to(device))
        loss_N = loss_N.index_put((place_N,), divergences(earlier, log_NV[place_N]))
    tokens_B = torch.bincount(row_N, minlength=num)
    loss_B = log_NV.new_zeros(num).index_add(0, row_N, loss_N) / tokens_B
    wrong_B = log_NV.new_zeros(num).index_add(0, row_N, (log_NV.detach().argmax(dim=1) != right_N).float())
    return loss_B, wrong_B == 0


def target_losses(log_NV: Tensor, target_N: Tensor, *, aim: float) -> Tensor:
    """Return how far the log-probability of each target token is below `aim`, N, nats."""
    return (aim - log_NV.gather(1, target_N[:, None])[:, 0]).clamp(min=0)


def _loss_weight(question: Question) -> float:
    return question.weight if question.kind.loss_name else 0.0


def validation_figures(found: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """Return the means of figures over batches of edits, each with its number of edits; the score is minus the loss."""
    every = [figures for figures, num_edits in found for _ in range(num_edits)]
    means = {name: fmean([figures[name] for figures in every if name in figures]) for name in every[0]}
    return means | {SCORE: -means[LOSS]}


def _means_of_kinds(questions: Sequence[Question], answers: Sequence[tuple[float, bool]]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for question, (loss, is_right) in zip(questions, answers, strict=True):
        found[question.kind.right_name].append(float(is_right))
        if question.kind.loss_name:
            found[question.kind.loss_name].append(loss)
    return {name: fmean(values) for name, values in found.items()}
