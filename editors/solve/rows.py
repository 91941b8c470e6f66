"""What each edit of a batch asks of each inner parameter, in memory and in files.

A row is a key k (the layer's input at a token of the edit) and an absolute target y: at k, the whole shift from the
base should be y. A file holds the rows of one batch or of several, whose borders it remembers:

    digest = save_batches(path, [first, second])
    first, second = load_batches(path, digest)

Tensors of a file are mapped, not read: a page comes into memory when somebody looks at it, and may leave again.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from editors.weights.deltas import read_tensors, write_tensors
from pipeline.domain.errors import IntegrityBroken

Read = TypeVar("Read")

Ranges = tuple[tuple[str, int, int], ...]
"""(edit id, first row, row after the last) of each edit, in the order of the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRows:
    """Keys and absolute targets of some edits."""

    keys: dict[str, Tensor]
    """Inner parameter -> K (T x I), fp32 on the CPU."""
    targets: dict[str, Tensor]
    """Inner parameter -> Y (T x O), fp32 on the CPU."""
    ranges: Mapping[str, Ranges]
    """Inner parameter -> whose the rows are. An edit may have no row in some: its range is empty there."""

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """The edits that have a place here, in order."""
        return tuple(dict.fromkeys(edit_id for ranges in self.ranges.values() for edit_id, _, _ in ranges))

    @property
    def num_rows(self) -> int:
        """T, of the inner parameter with the most rows."""
        return max((len(keys_TI) for keys_TI in self.keys.values()), default=0)

    def places_of(self, name: str, edit_ids: Collection[str]) -> slice | Tensor:
        """Which rows of an inner parameter some of the edits have: an index; a slice where that is all of them."""
        ranges = self.ranges[name]
        kept = [range(start, end) for edit_id, start, end in ranges if edit_id in edit_ids]
        if len(kept) == len(ranges):
            return slice(None)  # a view, so that what is mapped stays on disk
        return torch.tensor([place for places in kept for place in places], dtype=torch.long)

    def only(self, edit_ids: Collection[str]) -> Self:
        """The rows of some of the edits, in the same order; `self` if that is all of them."""
        if set(self.edit_ids) <= set(edit_ids):
            return self
        places = {name: self.places_of(name, edit_ids) for name in self.keys}
        return type(self)(
            keys={name: keys_TI[places[name]] for name, keys_TI in self.keys.items()},
            targets={name: targets_TO[places[name]] for name, targets_TO in self.targets.items()},
            ranges={
                name: consecutive([(edit_id, end - start) for edit_id, start, end in ranges if edit_id in edit_ids])
                for name, ranges in self.ranges.items()
            },
        )

    def of_params(self, names: Collection[str]) -> Self:
        """The rows of some inner parameters; every edit keeps its place, also where it has no row in any of them."""
        return type(self)(
            keys={name: self.keys[name] for name in names},
            targets={name: self.targets[name] for name in names},
            ranges=self.ranges,
        )

    def save(self, path: Path) -> str:
        """Write the rows as a file of one batch; the same rows give the same bytes. Returns the file's SHA-256."""
        return save_batches(path, [self])


def consecutive(lengths: Sequence[tuple[str, int]]) -> Ranges:
    """Row ranges of edits whose rows follow each other, from (edit id, number of rows)."""
    ends = list(accumulate((length for _, length in lengths), initial=0))
    return tuple((edit_id, *ends) for (edit_id, _), ends in zip(lengths, pairwise(ends), strict=True))


def save_batches(path: Path, batches: Sequence[EditRows]) -> str:
    """Write the rows of some batches, which have rows of the same inner parameters. Returns the file's SHA-256."""
    names = batches[0].keys
    tensors = {f"{name}.K": torch.cat([rows.keys[name] for rows in batches]) for name in names}
    tensors |= {f"{name}.Y": torch.cat([rows.targets[name] for rows in batches]) for name in names}
    lengths = {name: [_lengths(rows.ranges[name]) for rows in batches] for name in names}
    ranges = {name: consecutive(list(chain.from_iterable(of_batches))) for name, of_batches in lengths.items()}
    facts: dict[str, Any] = {"kind": "rows", "ranges": ranges}
    if len(batches) > 1:
        facts["batches"] = {name: [len(of_batch) for of_batch in of_batches] for name, of_batches in lengths.items()}
    return write_tensors(path, tensors, facts)


def load_batches(path: Path, expected_digest: str | None = None) -> tuple[EditRows, ...]:
    """The rows of each batch of a file, mapped.

    Raises:
        IntegrityBroken: if the file does not hold rows, or has another digest than expected.
    """
    tensors, facts = read_tensors(path, "rows", expected_digest)
    names = [key[:-2] for key in tensors if key.endswith(".K")]
    try:
        found = facts["ranges"]
        # Files of the first format say once whose the rows of all inner parameters are.
        of_params = found if isinstance(found, Mapping) else dict.fromkeys(names, found)
        ranges = {name: tuple((str(one[0]), int(one[1]), int(one[2])) for one in of_params[name]) for name in names}
        fits = all(_fits(ranges[name], tensors[f"{name}.K"], tensors[f"{name}.Y"]) for name in names)
        counts = facts.get("batches", {name: [len(ranges[name])] for name in names})
        return _split(tensors, ranges, counts) if fits else _refused(path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise IntegrityBroken(f"expected row ranges in {path}, got none: {error!r}") from error


def on_disk(write: Callable[[Path], object], read: Callable[[Path], Read]) -> Read | None:
    """What `read` maps of a file that `write` makes; the file has no name any more and is gone with the process.

    Returns:
        None where the disk has no room: the caller goes on with what it has in memory.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="corrigenda-ledger-") as folder:
            write(path := Path(folder) / "tensors")
            return read(path)
    except OSError:
        return None


def _split(
    tensors: Mapping[str, Tensor], ranges: Mapping[str, Ranges], counts: Mapping[str, Sequence[int]]
) -> tuple[EditRows, ...]:
    """The batches of a file, from the number of edits that each has in each inner parameter."""
    batches = []
    for place in range(len(next(iter(counts.values()), ()))):
        keys, targets, own = {}, {}, {}
        for name, of_batches in counts.items():
            first = sum(of_batches[:place])
            chosen = ranges[name][first : first + of_batches[place]]
            rows = slice(chosen[0][1], chosen[-1][2]) if chosen else slice(0)
            keys[name], targets[name] = tensors[f"{name}.K"][rows], tensors[f"{name}.Y"][rows]
            own[name] = consecutive(_lengths(chosen))
        batches.append(EditRows(keys=keys, targets=targets, ranges=own))
    return tuple(batches)


def _lengths(ranges: Ranges) -> list[tuple[str, int]]:
    return [(edit_id, end - start) for edit_id, start, end in ranges]


def _fits(ranges: Ranges, keys_TI: Tensor, targets_TO: Tensor) -> bool:
    """Whether the ranges follow each other and cover the rows, all of them."""
    num_rows = ranges[-1][2] if ranges else 0
    return ranges == consecutive(_lengths(ranges)) and len(keys_TI) == len(targets_TO) == num_rows


def _refused(path: Path) -> tuple[EditRows, ...]:
    raise IntegrityBroken(f"expected rows of the edits that {path} names, got others")
