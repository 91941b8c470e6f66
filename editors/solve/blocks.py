"""Sums of keys in blocks, so that an edit can leave a long ledger without all of its rows being read again.

The rows of an inner parameter are one long list, oldest first. It is cut into blocks of about 4 I rows:

    A = ((C0 + lambda I) + B_1 + ... + B_n) + G_1 + ... + G_m        B = K^T K of a block, G = K^T K of a batch

Every block but the last is closed: its sum lies on disk. The last one grows, and is added batch by batch. When edits
leave, only the blocks that lose a row are summed again; the others are read and added, I^2 a block. The order is the
same for a ledger that lived on and for one that was read from files, and so are the bits.

An edit begins a block if a hash of its id says so. Borders that were counted off would all move when one edit leaves.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from copy import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from editors.solve.gram import Gram
from editors.solve.prior import Prior
from editors.solve.rows import EditRows, moved_to_disk, on_disk
from editors.solve.shared_targets import SharedTargets
from editors.weights.tensor_files import read_tensors, write_tensors
from pipeline.domain.errors import UnknownRecord
from pipeline.domain.formats.canonical import sha256_text

ROWS_PER_BLOCK = 4
"""Mean number of rows of a block, in I: the sums (fp64) then take half of the disk that keys in fp32 take, and two and
a half times what packed ones take."""
BATCHES_PER_FILE = 2
"""Batches of a process that goes on whose rows are in memory before they move to disk together. They are copied as they
move; of one batch each, a long ledger would be twice as many mappings."""

Position = tuple[int, int]
"""(number of the batch, place in the batch) of an edit in the list of an inner parameter."""
FIRST, END = (-1, 0), (2**63, 0)
"""Before every position, and after."""
Key = tuple[str, Position, frozenset[Position]]
"""Which sum: inner parameter, where the block begins, and which of its edits are left out."""


class ActiveRows:
    """The rows of the active edits, and what their keys add up to in each inner parameter.

    Args:
        prior: second moments of keys over plain text.
        strength: c, the weight of the prior.
        ridge: lambda, as a fraction of the mean diagonal of C0.
        device: where sums are added up; rows stay where they are.
    """

    def __init__(self, prior: Prior, *, strength: float, ridge: float, device: torch.device | str = "cpu") -> None:
        self._prior, self._strength, self._ridge, self._device = prior, strength, ridge, device
        self._batches: dict[int, EditRows] = {}
        self._batch_of: dict[str, int] = {}
        self._num_batches = 0
        self._in_memory: list[int] = []
        self._starts: dict[str, list[Position]] = {name: [] for name in prior.moments}
        self._sums: dict[Key, Tensor] = {}

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """Every active edit, oldest first."""
        batch_of = self._batch_of
        return tuple(
            edit_id
            for number, rows in self._batches.items()
            for edit_id in rows.edit_ids
            if batch_of.get(edit_id) == number
        )

    @property
    def batches(self) -> tuple[EditRows, ...]:
        """The rows of the active edits, batch by batch; of a batch that has lost some they are copied."""
        return tuple(rows.only(self._active(number)) for number, rows in self._batches.items())

    def each(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield keys (T x I) and targets (T x O) of the active edits for an inner parameter, fp32, batch by batch."""
        for number, rows in self._batches.items():
            places = rows.places_of(name, self._active(number))
            yield rows.keys_of(name, places), rows.targets_of(name, places)

    def require(self, edit_ids: Collection[str]) -> None:
        """Make sure that edits are active.

        Raises:
            UnknownRecord: for one that has no rows here.
        """
        if missing := [edit_id for edit_id in edit_ids if edit_id not in self._batch_of]:
            raise UnknownRecord(f"expected an active edit to remove, got {min(missing)}", edit_id=min(missing))

    def rows_of(self, name: str, edit_ids: Collection[str]) -> tuple[Tensor, Tensor]:
        """Keys (T x I) and targets (T x O) of some edits for an inner parameter, fp64 on the CPU, oldest first."""
        chosen = defaultdict(set)
        for edit_id in edit_ids:  # an edit that came back has rows in an older batch too, which count no more
            chosen[self._batch_of[edit_id]].add(edit_id)
        found = [(rows := self._batches[number], rows.places_of(name, chosen[number])) for number in sorted(chosen)]
        keys = torch.cat([rows.keys_of(name, places) for rows, places in found])
        targets = torch.cat([rows.targets_of(name, places) for rows, places in found])
        return keys.double(), targets.double()

    def targets_of(self, name: str, edit_id: str) -> Tensor | SharedTargets:
        """Return the targets of an active edit's rows for an inner parameter, as they are kept."""
        rows = self._batches[self._batch_of[edit_id]]
        return rows.targets[name][rows.range_of(name, edit_id)]

    def prior_matrix(self, name: str, strength: float) -> Tensor:
        """Return C0 + lambda I of an inner parameter for a strength, fp64, in memory of its own."""
        matrix_II = self._prior.moments[name].to(self._device).double() * strength
        matrix_II.diagonal().add_(self._ridge * float(matrix_II.diagonal().mean()))
        return matrix_II

    def at(self, strength: float) -> ActiveRows:
        """Return the same rows with a prior of another strength. Only one of the two may take or drop rows."""
        changed = copy(self)
        changed._strength = strength
        return changed

    def gram(self, name: str, gone: frozenset[str] = frozenset()) -> Gram:
        """A of an inner parameter, without some of the edits."""
        matrix_II = self.prior_matrix(name, self._strength)
        left = self._positions(name, gone)
        starts = self._starts_without(name, left)
        for first, end in pairwise(starts):
            matrix_II += self._sum(name, first, end, left).to(self._device)
        made = Gram(matrix_II, name=name)
        for keys_TI in self._keys(name, starts[-1], END, left):
            made.add(keys_TI)
        return made

    def begins_block(self, name: str, rows: EditRows) -> bool:
        """Whether the sums of an inner parameter get another block with these rows."""
        return bool(_starts(name, rows))

    def take(self, rows: EditRows, *, only: Collection[str] | None = None) -> None:
        """Take the rows of a batch in; from time to time those that are in memory move to disk.

        Args:
            rows: of every inner parameter of the prior.
            only: which of its edits are active; all if None.
        """
        active = {edit_id for edit_id in rows.edit_ids if only is None or edit_id in only}
        if not active:
            return
        number = self._num_batches
        self._num_batches += 1
        self._batches[number] = rows
        self._batch_of |= dict.fromkeys(active, number)
        for name, starts in self._starts.items():
            starts += [(number, place) for place, edit_id in _starts(name, rows) if edit_id in active]
        if not rows.is_mapped:
            self._in_memory.append(number)
        if len(self._in_memory) >= BATCHES_PER_FILE:
            self._move_to_disk()

    def drop(self, edit_ids: Collection[str]) -> None:
        """Take the rows of some edits out. Sums that a trial without these edits made are kept."""
        sums: dict[Key, Tensor] = {}
        for name in self._starts:
            left = self._positions(name, edit_ids)
            starts = self._starts_without(name, left)
            for first, end in pairwise(starts):
                known = self._sums.get((name, first, _between(first, end, left)))
                if known is not None:
                    sums[name, first, frozenset()] = known
            self._starts[name] = starts[1:]
        self._sums = sums
        for number in {self._batch_of.pop(edit_id) for edit_id in edit_ids}:
            if not self._active(number):
                del self._batches[number]

    def forget_trials(self) -> None:
        """Let go of the sums that trials without some edits have made."""
        for key in [key for key in self._sums if key[2]]:
            del self._sums[key]

    def _active(self, number: int) -> set[str]:
        """The edits of a batch that are active by the rows that they have there."""
        return {edit_id for edit_id in self._batches[number].edit_ids if self._batch_of.get(edit_id) == number}

    def _positions(self, name: str, edit_ids: Collection[str]) -> frozenset[Position]:
        """Where edits stand in the list of an inner parameter; one without a row there stands nowhere."""
        return frozenset(
            (number, place)
            for number in {self._batch_of[edit_id] for edit_id in edit_ids}
            for place, (edit_id, _, _) in enumerate(self._batches[number].ranges[name])
            if edit_id in edit_ids and self._batch_of.get(edit_id) == number
        )

    def _starts_without(self, name: str, left: Collection[Position]) -> list[Position]:
        """Where blocks begin once some edits have left: a block that loses its first edit joins the one before."""
        return [FIRST, *(start for start in self._starts[name] if start not in left)]

    def _sum(self, name: str, first: Position, end: Position, left: frozenset[Position]) -> Tensor:
        """The sum of a closed block without some edits, made only once."""
        key = name, first, _between(first, end, left)
        if key not in self._sums:
            keys = self._keys(name, first, end, left)
            sum_II = block_sum(keys, len(self._prior.moments[name]), device=self._device)
            self._sums[key] = _mapped(sum_II)
        return self._sums[key]

    def _keys(self, name: str, first: Position, end: Position, left: Collection[Position]) -> Iterator[Tensor]:
        """Keys (T x I, fp32) of the active edits between two positions, batch by batch."""
        for number in range(max(first[0], 0), min(end[0] + 1, self._num_batches)):
            if number in self._batches:
                rows, active = self._batches[number], self._batch_of
                chosen = {
                    edit_id
                    for place, (edit_id, _, _) in enumerate(rows.ranges[name])
                    if active.get(edit_id) == number
                    if first <= (number, place) < end and (number, place) not in left
                }
                yield rows.keys_of(name, rows.places_of(name, chosen))

    def _move_to_disk(self) -> None:
        numbers = [number for number in self._in_memory if number in self._batches]
        moved = moved_to_disk([self._batches[number] for number in numbers])
        for number, rows in zip(numbers, moved, strict=True):
            # A file has the ranges of the inner parameters whose rows are here; an edit without any stays active.
            self._batches[number] = replace(rows, ranges=self._batches[number].ranges)
        self._in_memory = []


def starts_block(edit_id: str, num_rows: int, width: int) -> bool:
    """Whether an edit begins a block: by a hash of its id, one in as many as have `ROWS_PER_BLOCK * width` rows."""
    drawn = int(sha256_text(edit_id)[:12], 16) / 16**12
    return drawn * ROWS_PER_BLOCK * width < num_rows


def _starts(name: str, rows: EditRows) -> list[tuple[int, str]]:
    """Places and ids of the edits of a batch that begin a block."""
    width = rows.keys[name].shape[1]
    ranges = enumerate(rows.ranges[name])
    return [(place, edit_id) for place, (edit_id, start, end) in ranges if starts_block(edit_id, end - start, width)]


def block_sum(keys: Iterable[Tensor], width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """`K^T K` of a closed block, I x I, fp64; how its rows were cut into batches makes no difference to its bits."""
    sum_II = torch.zeros(width, width, dtype=torch.float64, device=device)
    # As many rows at a time as make one fp64 matrix of the size of the sum; rows are unpacked as they are needed.
    waiting_TI = torch.zeros(0, width)
    for part_TI in keys:
        waiting_TI = torch.cat([waiting_TI, part_TI])
        while len(waiting_TI) >= width:
            _add_square(sum_II, waiting_TI[:width])
            waiting_TI = waiting_TI[width:]
    _add_square(sum_II, waiting_TI)
    return sum_II


def _add_square(sum_II: Tensor, rows_TI: Tensor) -> None:
    if len(rows_TI):
        rows_TI = rows_TI.to(sum_II)
        sum_II += rows_TI.T @ rows_TI


def _between(first: Position, end: Position, left: Collection[Position]) -> frozenset[Position]:
    return frozenset(position for position in left if first <= position < end)


def _mapped(sum_II: Tensor) -> Tensor:
    def write(path: Path) -> object:
        return write_tensors(path, {"sum": sum_II}, {"kind": "sum"})

    mapped = on_disk(write, lambda path: read_tensors(path, "sum")[0]["sum"])
    return sum_II if mapped is None else mapped
