"""What each edit of a batch asks of each inner parameter, in memory and in files.

A row is a key k (the layer's input at a token of the edit) and an absolute target y: at k, the whole shift from the
base should be y. Edits with frames have many rows, which lie packed (see `packing`), and their targets in two parts:
what the weights before the edit gave at k, and the edit's own shift, which is kept once for all rows that share it.
A file holds the rows of one batch or of several, whose borders it remembers:

    digest = save_batches(path, [first, second])
    first, second = load_batches(path, digest)

Tensors of a file are mapped, not read: a page comes into memory when somebody looks at it, and may leave again.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from editors.solve.packing import Packed
from editors.solve.shared_targets import SharedTargets, whole
from editors.weights.tensor_files import read_tensors, write_tensors
from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.scratch import scratch_folder

Read = TypeVar("Read")

Ranges = tuple[tuple[str, int, int], ...]
"""(edit id, first row, row after the last) of each edit, in the order of the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRows:
    """Keys and absolute targets of some edits: fp32 on the CPU, or packed where rows share shifts."""

    keys: Mapping[str, Tensor | Packed]
    """Inner parameter -> K (T x I)."""
    targets: Mapping[str, Tensor | SharedTargets]
    """Inner parameter -> Y (T x O)."""
    ranges: Mapping[str, Ranges]
    """Inner parameter -> whose the rows are. An edit may have no row in some: its range is empty there."""
    is_mapped: bool = False
    """Whether keys and targets are those of a file, and so not in the process's own memory."""

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """The edits that have a place here, in order."""
        return tuple(dict.fromkeys(edit_id for ranges in self.ranges.values() for edit_id, _, _ in ranges))

    def keys_of(self, name: str, places: slice | Tensor = slice(None)) -> Tensor:
        """Return keys of an inner parameter, T x I, fp32: all, or those in some places."""
        return whole(self.keys[name][places])

    def targets_of(self, name: str, places: slice | Tensor = slice(None)) -> Tensor:
        """Return absolute targets of an inner parameter, T x O, fp32: all, or those in some places."""
        return whole(self.targets[name][places])

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

    def range_of(self, name: str, edit_id: str) -> slice:
        """Return which rows of an inner parameter an edit has."""
        return next((slice(start, end) for found, start, end in self.ranges[name] if found == edit_id), slice(0))

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
            is_mapped=self.is_mapped,
        )

    def save(self, path: Path) -> str:
        """Write the rows as a file of one batch; the same rows give the same bytes. Returns the file's SHA-256."""
        return save_batches(path, [self])


def consecutive(lengths: Sequence[tuple[str, int]]) -> Ranges:
    """Row ranges of edits whose rows follow each other, from (edit id, number of rows)."""
    ends = list(accumulate((length for _, length in lengths), initial=0))
    return tuple((edit_id, *ends) for (edit_id, _), ends in zip(lengths, pairwise(ends), strict=True))


def save_batches(path: Path, batches: Sequence[EditRows]) -> str:
    """Write the rows of some batches, which have rows of the same inner parameters. Returns the file's SHA-256.

    Batches of which some are packed and some are not are written as they are read: whole.
    """
    names = list(batches[0].keys)
    packed = {name: _packed(batches, name) for name in names}
    tensors = {
        f"{name}.{part}": tensors
        for name, (keys, targets) in packed.items()
        for part, tensors in (_packed_parts(keys, targets) if keys else _whole_parts(batches, name)).items()
    }
    lengths = {name: [_lengths(rows.ranges[name]) for rows in batches] for name in names}
    ranges = {name: consecutive(list(chain.from_iterable(of_batches))) for name, of_batches in lengths.items()}
    facts: dict[str, Any] = {"kind": "rows", "ranges": ranges}
    if widths := {name: keys[0].width for name, (keys, _) in packed.items() if keys}:
        facts["widths"] = widths
    if len(batches) > 1:
        facts["batches"] = {name: [len(of_batch) for of_batch in of_batches] for name, of_batches in lengths.items()}
    return write_tensors(path, tensors, facts)


def load_batches(path: Path, expected_digest: str | None = None) -> tuple[EditRows, ...]:
    """The rows of each batch of a file, mapped.

    Raises:
        IntegrityBroken: if the file does not hold rows, or has another digest than expected.
    """
    tensors, facts = read_tensors(path, "rows", expected_digest)
    try:
        widths = facts.get("widths", {})
        keys, targets = _stored_keys(tensors, widths), _stored_targets(tensors)
        found = facts["ranges"]
        # Files of the first format say once whose the rows of all inner parameters are.
        of_params = found if isinstance(found, Mapping) else dict.fromkeys(keys, found)
        ranges = {name: tuple((str(one[0]), int(one[1]), int(one[2])) for one in of_params[name]) for name in keys}
        fits = all(_fits(ranges[name], keys[name], targets[name]) for name in keys)
        counts = facts.get("batches", {name: [len(ranges[name])] for name in keys})
        rows = EditRows(keys=keys, targets=targets, ranges=ranges, is_mapped=True)
        return _split(rows, counts) if fits else _refused(path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise IntegrityBroken(f"expected row ranges in {path}, got none: {error!r}") from error


def on_disk(write: Callable[[Path], object], read: Callable[[Path], Read]) -> Read | None:
    """What `read` maps of a file that `write` makes; the file has no name any more and is gone with the process.

    Returns:
        None where the disk has no room: the caller goes on with what it has in memory.
    """
    try:
        with scratch_folder("ledger") as folder:
            write(path := Path(folder) / "tensors")
            return read(path)
    except OSError:
        return None


def moved_to_disk(batches: Sequence[EditRows]) -> Sequence[EditRows]:
    """Return the rows of some batches, mapped; as they are where the disk has no room."""
    if not any(rows.keys for rows in batches):  # of no inner parameter, as on a rank that solves for none
        return batches
    return on_disk(lambda path: save_batches(path, batches), load_batches) or batches


def _packed(batches: Sequence[EditRows], name: str) -> tuple[list[Packed], list[SharedTargets]]:
    """The packed rows of an inner parameter, batch after batch; none if those of one are whole."""
    keys, targets = [], []
    for rows in batches:
        of_keys, of_targets = rows.keys[name], rows.targets[name]
        if isinstance(of_keys, Packed) and isinstance(of_targets, SharedTargets):
            keys.append(of_keys)
            targets.append(of_targets)
        elif len(of_keys):
            return [], []
    return keys, targets


def _whole_parts(batches: Sequence[EditRows], name: str) -> dict[str, list[Tensor]]:
    """The tensors in which a file has whole rows of an inner parameter, batch after batch."""
    return {"K": [rows.keys_of(name) for rows in batches], "Y": [rows.targets_of(name) for rows in batches]}


def _packed_parts(keys: Sequence[Packed], targets: Sequence[SharedTargets]) -> dict[str, list[Tensor]]:
    """The tensors in which a file has packed rows of an inner parameter, batch after batch."""
    return {
        "K.codes": [one.codes for one in keys],
        "K.scales": [one.scales for one in keys],
        "Z": [one.held_TO for one in targets],
        "scale": [one.scale_T for one in targets],
        "R": [one.asked_HO for one in targets],
        "shift": SharedTargets.shifts_of(targets),
        "root": [one.root_T for one in targets],
    }


def _stored_keys(tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor | Packed]:
    """The keys of a file by inner parameter, in the order of their names."""
    found: dict[str, Tensor | Packed] = {key[:-2]: tensor for key, tensor in tensors.items() if key.endswith(".K")}
    for name, width in widths.items():
        if name not in found:
            codes, scales = tensors[f"{name}.K.codes"], tensors[f"{name}.K.scales"]
            found[name] = Packed(codes=codes, scales=scales, width=int(width))
    return dict(sorted(found.items()))


def _stored_targets(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | SharedTargets]:
    """The targets of a file by inner parameter."""
    found: dict[str, Tensor | SharedTargets] = {}
    for name in [key[:-2] for key in tensors if key.endswith(".R")]:
        found[name] = SharedTargets(
            held_TO=tensors[f"{name}.Z"],
            scale_T=tensors[f"{name}.scale"],
            asked_HO=tensors[f"{name}.R"],
            shift_T=tensors[f"{name}.shift"],
            root_T=tensors[f"{name}.root"],
        )
    return found | {key[:-2]: tensor for key, tensor in tensors.items() if key.endswith(".Y")}


def _split(rows: EditRows, counts: Mapping[str, Sequence[int]]) -> tuple[EditRows, ...]:
    """The batches of a file, from the number of edits that each has in each inner parameter."""
    batches = []
    for place in range(len(next(iter(counts.values()), ()))):
        keys, targets, own = {}, {}, {}
        for name, of_batches in counts.items():
            first = sum(of_batches[:place])
            chosen = rows.ranges[name][first : first + of_batches[place]]
            places = slice(chosen[0][1], chosen[-1][2]) if chosen else slice(0)
            keys[name], targets[name] = rows.keys[name][places], rows.targets[name][places]
            own[name] = consecutive(_lengths(chosen))
        batches.append(EditRows(keys=keys, targets=targets, ranges=own, is_mapped=rows.is_mapped))
    return tuple(batches)


def _lengths(ranges: Ranges) -> list[tuple[str, int]]:
    return [(edit_id, end - start) for edit_id, start, end in ranges]


def _fits(ranges: Ranges, keys: Tensor | Packed, targets: Tensor | SharedTargets) -> bool:
    """Whether the ranges follow each other and cover the rows, all of them."""
    num_rows = ranges[-1][2] if ranges else 0
    return ranges == consecutive(_lengths(ranges)) and len(keys) == len(targets) == num_rows


def _refused(path: Path) -> tuple[EditRows, ...]:
    raise IntegrityBroken(f"expected rows of the edits that {path} names, got others")
