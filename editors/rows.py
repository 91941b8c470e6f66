"""Knows the ledger rows of one batch: what each of its edits asks of each inner parameter, and their file.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from editors.deltas import read_tensors, write_tensors
from pipeline.domain.errors import IntegrityBroken


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRows:
    """Keys and absolute targets: at key k the whole shift from the base should be y.

    The ridge of the lineage travels with every batch's rows: it is fixed by the first batch, and whatever rows are
    still active bring it back on a reload. A lineage without active rows has none, live and reloaded alike.
    """

    keys: dict[str, Tensor]
    """Inner parameter -> K (T x I), fp32 on the CPU."""
    targets: dict[str, Tensor]
    """Inner parameter -> Y (T x O), fp32 on the CPU."""
    ranges: tuple[tuple[str, int, int], ...]
    """(edit id, first row, row after the last), in the order of the rows."""
    ridge: dict[str, float]
    """Inner parameter -> lambda."""

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """The edits that have rows here."""
        return tuple(edit_id for edit_id, _, _ in self.ranges)

    @property
    def num_rows(self) -> int:
        """T."""
        return sum(end - start for _, start, end in self.ranges)

    def only(self, edit_ids: Collection[str]) -> Self:
        """The rows of some of the edits, in the same order; `self` if that is all of them."""
        kept = [row for row in self.ranges if row[0] in edit_ids]
        if len(kept) == len(self.ranges):
            return self
        index = torch.tensor([place for _, start, end in kept for place in range(start, end)], dtype=torch.long)
        lengths = [(edit_id, end - start) for edit_id, start, end in kept]
        return type(self)(
            keys={name: keys[index] for name, keys in self.keys.items()},
            targets={name: targets[index] for name, targets in self.targets.items()},
            ranges=consecutive(lengths),
            ridge=self.ridge,
        )

    def save(self, path: Path) -> str:
        """Write the rows; the same rows give the same bytes. Returns the file's SHA-256."""
        tensors = {f"{name}.K": keys for name, keys in self.keys.items()}
        tensors |= {f"{name}.Y": targets for name, targets in self.targets.items()}
        facts = {"kind": "rows", "ranges": [list(row) for row in self.ranges], "ridge": self.ridge}
        return write_tensors(path, tensors, facts)

    @classmethod
    def load(cls, path: Path, expected_digest: str | None = None) -> Self:
        """Read rows back.

        Raises:
            IntegrityBroken: if the file does not hold rows, or has another digest than expected.
        """
        tensors, facts = read_tensors(path, "rows", expected_digest)
        try:
            ranges = tuple((str(row[0]), int(row[1]), int(row[2])) for row in facts["ranges"])
            ridge = {str(name): float(value) for name, value in facts["ridge"].items()}
        except (KeyError, TypeError, IndexError) as error:
            raise IntegrityBroken(f"expected row ranges and a ridge in {path}, got neither: {error!r}") from error
        return cls(
            keys={key[:-2]: tensor for key, tensor in tensors.items() if key.endswith(".K")},
            targets={key[:-2]: tensor for key, tensor in tensors.items() if key.endswith(".Y")},
            ranges=ranges,
            ridge=ridge,
        )


def consecutive(lengths: Sequence[tuple[str, int]]) -> tuple[tuple[str, int, int], ...]:
    """Row ranges of edits whose rows follow each other, from (edit id, number of rows)."""
    ranges, start = [], 0
    for edit_id, length in lengths:
        ranges.append((edit_id, start, start + length))
        start += length
    return tuple(ranges)
