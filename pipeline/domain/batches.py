"""Which edits travel together, and which displace each other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

from pipeline.domain.edits import Edit

T = TypeVar("T")

RETAINED = 64
"""Older active edits that every candidate is measured on, at most, besides those that it makes again."""

SIBLINGS = 8
"""Active edits about one subject, at most, that are made again when an edit about it comes or goes; the newest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditBatch:
    """Edits that one editor call makes, and the active ones they displace."""

    batch_id: str
    """UUID of the batch."""
    lineage: str
    """Name of the lineage."""
    ordinal: int
    """Place among the lineage's batches, from 1."""
    parent_id: str | None
    """The head it was claimed on; None for the base."""
    edits: tuple[Edit, ...]
    """The edits, oldest first; no two have the same conflict key."""
    displaced: tuple[tuple[str, str], ...] = ()
    """(active edit, edit of this batch that supersedes it)."""


class Setback(StrEnum):
    """Why an edit comes back from a batch without a verdict. It decides when, and with how many, it is tried again."""

    untried = "untried"
    """It was not at fault and what was is settled, or a person settles it: the lineage was saturated, or the worker
    was stopped."""
    hindered = "hindered"
    """Something failed that is not an edit's: the parent could not be loaded, a disk was full. It waits longer every
    time."""
    suspected = "suspected"
    """It failed its gates with others that passed without it: next it is tried on top of them, with at most half as
    many of such as there are."""
    together = "together"
    """It was tried with others and nobody knows which of them is to blame: next time with at most half as many."""
    alone = "alone"
    """It was tried by itself, and the ranks failed: that costs an attempt."""


def most_companions(num_tried: int) -> int:
    """Return how many of the edits that came back together, suspected or undecided, may be tried together again."""
    return max((num_tried + 1) // 2, 1)


def displaced_by(edits: Sequence[Edit], active: Sequence[Edit]) -> tuple[tuple[str, str], ...]:
    """(displaced active edit, displacing edit) for every active edit whose fact is edited again."""
    newer = {edit.request.conflict_key: edit.edit_id for edit in edits}
    return tuple(
        (held.edit_id, newer[held.request.conflict_key]) for held in active if held.request.conflict_key in newer
    )


def halves(edits: Sequence[Edit]) -> tuple[tuple[Edit, ...], tuple[Edit, ...]]:
    """Return the first and the second half of a failing batch, in order; the first is not the smaller one."""
    middle = (len(edits) + 1) // 2
    return tuple(edits[:middle]), tuple(edits[middle:])


def most_trials(num_edits: int) -> int:
    """2 * ceil(log2 N) + 2: after so many trials a batch is no longer bisected."""
    return 2 * max(num_edits - 1, 0).bit_length() + 2


def retention_draws(num_places: int, *, seed: str, size: int = RETAINED) -> tuple[tuple[int, int, int], ...]:
    """(first, drawn, last) place of each of `size` equal strata of age, for a sample of older active edits.

    Of each stratum the first active edit at or above the drawn place is measured again, else the nearest below it.
    Where all of a stratum have gone, the newest edits that are not in the sample yet fill it up.

    Args:
        num_places: activations of the lineage so far; they have the places 1 to this.
        seed: the snapshot's id, so that anybody can draw the same sample again.
        size: how many strata; with fewer places there are fewer.
    """
    draw = random.Random(seed)  # noqa: S311 - reproducible by design, no secret
    bounds = [round(index * num_places / size) for index in range(size + 1)]
    return tuple((low + 1, draw.randint(low + 1, high), high) for low, high in pairwise(bounds) if low < high)


def stratified_sample(items: Sequence[T], *, seed: str, size: int) -> tuple[T, ...]:
    """Return one item from each of `size` equal stretches of a list, in its order; all of a list that is no longer."""
    if len(items) <= size:
        return tuple(items)
    if size < 1:
        return ()
    draw = random.Random(seed)  # noqa: S311 - reproducible by design, no secret
    bounds = [round(index * len(items) / size) for index in range(size + 1)]
    return tuple(items[draw.randrange(low, high)] for low, high in pairwise(bounds))
