"""Knows the ledger rows of one batch: what each of its edits asks of each inner parameter, and their file.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from editors.weights.deltas import read_tensors, write_tensors
from pipeline.domain.errors import IntegrityBroken

Ranges = tuple[tuple[str, int, int], ...]
"""(edit id, first row, row after the last) of each edit, in the order of the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRows:
    """Keys and absolute targets: at key k the whole shift from the base should be y."""

    keys: dict[str, Tensor]
    """Inner parameter -> K (T x I), fp32 on the CPU."""
    targets: dict[str, Tensor]
    """Inner parameter -> Y (T x O), fp32 on the CPU."""
    ranges: Ranges | Mapping[str, Ranges]
    """Whose the rows are; by inner parameter where their keys are other tokens. An edit may have no row in some."""

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """The edits that have a place here."""
        every = (self.ranges,) if isinstance(self.ranges, tuple) else self.ranges.values()
        return tuple(dict.fromkeys(edit_id for ranges in every for edit_id, _, _ in ranges))

    @property
    def num_rows(self) -> int:
        """T, of the inner parameter with the most rows."""
        return max((len(keys_TI) for keys_TI in self.keys.values()), default=0)

    def ranges_of(self, name: str) -> Ranges:
        """Whose the rows of an inner parameter are."""
        return self.ranges if isinstance(self.ranges, tuple) else self.ranges[name]

    def only(self, edit_ids: Collection[str]) -> Self:
        """The rows of some of the edits, in the same order; `self` if that is all of them."""
        if set(self.edit_ids) <= set(edit_ids):
            return self
        places = {name: _places(self.ranges_of(name), edit_ids) for name in self.keys}
        return type(self)(
            keys={name: keys[places[name]] for name, keys in self.keys.items()},
            targets={name: targets[places[name]] for name, targets in self.targets.items()},
            ranges=_each(self.ranges, lambda ranges: _closed_up(ranges, edit_ids)),
        )

    def of_params(self, names: Collection[str]) -> Self:
        """The rows of some inner parameters; every edit keeps its place."""
        return type(self)(
            keys={name: self.keys[name] for name in names},
            targets={name: self.targets[name] for name in names},
            ranges=self.ranges,
        )

    def save(self, path: Path) -> str:
        """Write the rows; the same rows give the same bytes. Returns the file's SHA-256."""
        tensors = {f"{name}.K": keys for name, keys in self.keys.items()}
        tensors |= {f"{name}.Y": targets for name, targets in self.targets.items()}
        ranges = _each(self.ranges, lambda ranges: [list(row) for row in ranges])
        return write_tensors(path, tensors, {"kind": "rows", "ranges": ranges})

    @classmethod
    def load(cls, path: Path, expected_digest: str | None = None) -> Self:
        """Read rows back.

        Raises:
            IntegrityBroken: if the file does not hold rows, or has another digest than expected.
        """
        tensors, facts = read_tensors(path, "rows", expected_digest)
        keys = {key[:-2]: tensor for key, tensor in tensors.items() if key.endswith(".K")}
        targets = {key[:-2]: tensor for key, tensor in tensors.items() if key.endswith(".Y")}
        try:
            ranges = _each(facts["ranges"], lambda rows: tuple((str(row[0]), int(row[1]), int(row[2])) for row in rows))
            rows = cls(keys=keys, targets=targets, ranges=ranges)
            fits = all(_fits(rows.ranges_of(name), keys[name], targets[name]) for name in keys)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise IntegrityBroken(f"expected row ranges in {path}, got none: {error!r}") from error
        if not fits:
            raise IntegrityBroken(f"expected rows of the edits that {path} names, got others")
        return rows


def consecutive(lengths: Sequence[tuple[str, int]]) -> Ranges:
    """Row ranges of edits whose rows follow each other, from (edit id, number of rows)."""
    ranges, start = [], 0
    for edit_id, length in lengths:
        ranges.append((edit_id, start, start + length))
        start += length
    return tuple(ranges)


def _each(ranges: Any, change: Callable[[Any], Any]) -> Any:
    """Ranges changed, the shared ones or those of every inner parameter."""
    return {str(name): change(own) for name, own in ranges.items()} if isinstance(ranges, Mapping) else change(ranges)


def _closed_up(ranges: Ranges, edit_ids: Collection[str]) -> Ranges:
    return consecutive([(edit_id, end - start) for edit_id, start, end in ranges if edit_id in edit_ids])


def _places(ranges: Ranges, edit_ids: Collection[str]) -> Tensor:
    kept = [range(start, end) for edit_id, start, end in ranges if edit_id in edit_ids]
    return torch.tensor([place for places in kept for place in places], dtype=torch.long)


def _fits(ranges: Ranges, keys_TI: Tensor, targets_TO: Tensor) -> bool:
    """Whether the ranges follow each other and cover the rows, all of them."""
    ends = [0, *(end for _, _, end in ranges)]
    follows = all(ends[place] == start <= end for place, (_, start, end) in enumerate(ranges))
    return follows and len(keys_TI) == len(targets_TO) == ends[-1]
