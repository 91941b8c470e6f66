"""What an edited model is asked in an episode; the answers give the loss, and the figures that a screen shows.

Legend: N target tokens in a batch, T target tokens of one sequence, B sequences, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from editors.measure.losses import Reading, divergence, rows_of
from editors.models.comm import merged
from editors.models.families import EditableModel, TargetBatch
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded
from editors.training.examples import Reader
from editors.training.objective import LOSS, SCORE

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
    reader: Reader,
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
        reader: prepares the sequences.
        questions: at least one.
        before: what the base answers to every sequence whose own target is not what is right.
        branches_of: the edits, as side branches.
        num_edits: the edits of the episode.
        aim: log-probability from which a target token adds nothing to the loss: to go further would only change more.
        max_tokens: most padded tokens of a forward.
    """
    own: dict[int, tuple[float, bool]] = {}
    for places, batch in reader.prepare([question.sequence for question in questions], max_tokens=max_tokens):
        with side_branch(model.module, branches_of(places, batch)):
            log_NV = model.target_logits(batch).float().log_softmax(dim=1)
        parts = []
        for place, of_row in zip(places, rows_of(batch), strict=False):  # a filler has a row and no place
            question, log_TV = questions[place], log_NV[of_row]
            earlier = None if question.kind.is_target else before[question.sequence]
            right_T = batch.target_N[of_row] if earlier is None else earlier.argmax_T.to(log_TV.device)
            is_right = bool((log_TV.argmax(dim=1) == right_T).all())
            loss = log_TV.new_zeros(())
            if question.kind.loss_name:
                loss = target_loss(log_TV, right_T, aim=aim) if earlier is None else divergence(earlier, log_TV)
                parts.append(question.weight * loss / num_edits)
            own[place] = float(loss.detach()), is_right
        if torch.is_grad_enabled():
            _backward(parts, log_NV)
    answers = merged(model.comm, own)
    total = sum(question.weight * loss for question, (loss, _) in zip(questions, answers, strict=True))
    return {LOSS: total / num_edits} | _means_of_kinds(questions, answers)


def target_loss(log_TV: Tensor, target_T: Tensor, *, aim: float) -> Tensor:
    """Return the mean over a target's tokens of how far their log-probability is below `aim`, nats."""
    return (aim - log_TV.gather(1, target_T[:, None])).clamp(min=0).mean()


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


def _backward(parts: Sequence[Tensor], log_NV: Tensor) -> None:
    # A filler has no loss, but the other ranks wait in their backward pass for this rank's part of the weights.
    total = torch.stack(list(parts)).sum() if parts else 0.0 * log_NV.sum()
    total.backward()  # type: ignore[no-untyped-call]
