"""Teacher-forced passes over sequences: hits and probabilities of targets, and changes since an earlier reading.

    prepared = prepare(model, sequences)
    before = readings(model, prepared)      # then edit the model
    _, [changes] = compared(model, prepared, [before])

Legend: N target tokens in a batch, T target tokens of one sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.measure.losses import Reading, divergences, rows_of, target_log_probability
from editors.models.comm import merged
from editors.models.families import EditableModel, TargetBatch
from editors.models.tokens import Encoded

Prepared = list[tuple[list[int], TargetBatch]]
"""Batches of sequences, each with the places of its rows in the list that they were made from. A batch may hold what
enters the first edited block, so that only the blocks from there on run again. See `EditableModel.chunked`."""
READ_POSITIONS = 64
"""Most target tokens whose distributions are read at once on a CPU, each of V numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How probable one target is, teacher-forced."""

    hits: tuple[bool, ...]
    """Whether each target token is the argmax, in order."""
    mean_log_probability: float
    """Mean log-probability of the target's tokens, nats."""

    @property
    def is_hit(self) -> bool:
        """Whether every target token is the argmax."""
        return all(self.hits)

    @property
    def token_fraction(self) -> float:
        """Share of target tokens that are the argmax."""
        return sum(self.hits) / len(self.hits)

    @property
    def probability(self) -> float:
        """Geometric mean probability of the target's tokens."""
        return math.exp(self.mean_log_probability)

    def is_likelier_than(self, other: Score) -> bool:
        """Return whether this target is the more probable of two, geometric means over the tokens."""
        return self.mean_log_probability > other.mean_log_probability


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How a model differs from an earlier reading of the same sequence."""

    is_unchanged: bool
    """Whether the argmax is the same at every position."""
    kl: float
    """Mean over the positions of KL(earlier || now), nats; see `losses.divergences`."""


def prepare(model: EditableModel, sequences: Sequence[Encoded], *, max_tokens: int | None = None) -> Prepared:
    """Return batches of bounded size with what enters the first edited block, which no edit of the base changes."""
    return [(places, model.prefixed(batch)) for places, batch in model.chunked(sequences, max_tokens=max_tokens)]


@torch.no_grad()
def scores(model: EditableModel, prepared: Prepared) -> list[Score]:
    """Return the score of each sequence, in the order they were prepared from; every rank has to call it."""
    found: dict[int, Score] = {}
    for places, batch in prepared:
        logits_NV = model.target_logits(batch).float()
        if not places:
            continue
        hits = (logits_NV.argmax(dim=1) == batch.target_N).tolist()
        log_N = target_log_probability(logits_NV, batch).double().cpu()
        for place, of_row in zip(places, rows_of(batch), strict=True):
            found[place] = Score(hits=tuple(hits[of_row]), mean_log_probability=float(log_N[of_row].mean()))
    return merged(model.comm, found)


def readings(model: EditableModel, prepared: Prepared) -> list[Reading]:
    """Return what the model would say along each sequence, in order; every rank has to call it."""
    return compared(model, prepared, [])[0]


@torch.no_grad()
def compared(
    model: EditableModel, prepared: Prepared, earlier: Sequence[Sequence[Reading]]
) -> tuple[list[Reading], list[list[Change]]]:
    """Return readings now, and how they differ from several earlier ones, in one pass; every rank has to call it.

    Args:
        model: the model as it is now.
        prepared: the sequences.
        earlier: lists of readings of the same sequences, each in the order of the sequences.
    """
    own: dict[int, tuple[Reading, list[Change]]] = {}
    for places, batch in prepared:
        log_NV = model.target_logits(batch).float().log_softmax(dim=1)
        rows = rows_of(batch)[: len(places)]  # a filler has a row and no place
        for start, end in _spans(rows, READ_POSITIONS * model.times_more):
            here = slice(rows[start].start, rows[end - 1].stop)
            own |= _differences(places[start:end], rows[start:end], log_NV[here], earlier)
    found = merged(model.comm, own)
    return [reading for reading, _ in found], [[changes[i] for _, changes in found] for i in range(len(earlier))]


def _spans(rows: Sequence[slice], max_positions: int) -> Iterator[tuple[int, int]]:
    """Yield groups of neighbouring sequences with at most so many target tokens, or of one with more."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end].stop - rows[start].start > max_positions:
            yield start, end
            start = end


def _differences(
    places: Sequence[int], rows: Sequence[slice], log_TV: Tensor, earlier: Sequence[Sequence[Reading]]
) -> dict[int, tuple[Reading, list[Change]]]:
    """Return, by place, the readings of neighbouring sequences and their changes since earlier readings.

    All are read at once: on an accelerator, fetching numbers one by one would take longer than making them.
    """
    now = Reading.of(log_TV)
    parts = [slice(row.start - rows[0].start, row.stop - rows[0].start) for row in rows]
    changes: list[list[Change]] = [[] for _ in places]
    for of_each in earlier:
        before = Reading.joined([of_each[place] for place in places])
        kl_T, is_same_T = divergences(before, log_TV).cpu(), now.argmax_T == before.argmax_T
        for found, part in zip(changes, parts, strict=True):
            kl = max(float(kl_T[part].mean()), 0.0)  # rounding may lead below 0
            found.append(Change(is_unchanged=bool(is_same_T[part].all()), kl=kl))
    return {place: (now.part(part), found) for place, part, found in zip(places, parts, changes, strict=True)}
