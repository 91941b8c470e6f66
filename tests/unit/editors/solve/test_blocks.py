"""Sums in blocks: an edit that leaves costs its block, and the bits are always those of a ledger read from files."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.solve import blocks
from editors.solve.blocks import block_sum, starts_block
from editors.solve.ledger import Ledger
from editors.solve.rows import EditRows
from pipeline.domain.rank_api import FileRef, LedgerRows
from tests.support.ledger_parts import NAME, keys_of, random_prior, random_rows, targets_of, whole_shift

WIDTH = 6
NOTHING = random_rows(0, {}, width=WIDTH)


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each sum of a block read, in the order in which they were made."""
    made: list[int] = []

    def counted(keys: Iterable[torch.Tensor], width: int, **chosen: Any) -> torch.Tensor:
        parts = list(keys)
        made.append(sum(map(len, parts)))
        return block_sum(parts, width, **chosen)

    monkeypatch.setattr(blocks, "block_sum", counted)
    return made


def empty() -> Ledger:
    return Ledger(random_prior(WIDTH), strength=10.0, ridge=0.03)


def batch(number: int, size: int = 8) -> EditRows:
    """Edits of one row or two."""
    return random_rows(number, {f"{number}-{place}": 1 + place % 2 for place in range(size)}, width=WIDTH)


class Written:
    """A ledger that lives on, and its files, from which it can be read again at any time."""

    def __init__(self, folder: Path) -> None:
        self.ledger, self._folder = empty(), folder
        self._prior = FileRef(path=str(folder / "prior"), digest=random_prior(WIDTH).save(folder / "prior"))
        self._files: list[tuple[FileRef, tuple[str, ...]]] = []

    def commit(self, rows: EditRows, removed_ids: Sequence[str] = ()) -> None:
        if removed_ids:
            self.ledger.without(removed_ids).factor(NAME)
        self.ledger.commit(rows, removed_ids)
        if rows.edit_ids:
            path = self._folder / str(len(self._files))
            self._files.append((FileRef(path=str(path), digest=rows.save(path)), rows.edit_ids))

    def read(self) -> Ledger:
        active = set(self.ledger.edit_ids)
        rows = [
            LedgerRows(file=file, edit_ids=tuple(edit_id for edit_id in edit_ids if edit_id in active))
            for file, edit_ids in self._files
        ]
        return Ledger.from_files(self._prior, rows, strength=10.0, ridge=0.03)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_came_and_went_the_bits_are_those_of_the_files_and_the_sums_those_of_a_dense_solve(
    seed: int, tmp_path: Path
) -> None:
    draw, written = random.Random(seed), Written(tmp_path)  # noqa: S311
    for step in range(40):
        active = written.ledger.edit_ids
        removed = draw.sample(active, min(len(active), draw.choice([0, 0, 1, 1, 2, 9])))
        is_removal = bool(removed) and draw.random() < 0.3
        if draw.random() < 0.7:
            written.ledger.without().factor(NAME)
        written.commit(NOTHING if is_removal else batch(step, draw.randint(4, 16)), removed)
        assert not set(removed) & set(written.ledger.edit_ids)
        if step % 4 == 0:
            read = written.read()
            assert read.edit_ids == written.ledger.edit_ids
            assert torch.equal(read.without().matrix(NAME), written.ledger.without().matrix(NAME))
            assert torch.equal(whole_shift(read, NAME), whole_shift(written.ledger, NAME))
    assert len(written.ledger._rows._starts[NAME]) > 3, "several blocks"
    torch.testing.assert_close(written.ledger.without().matrix(NAME), dense(written.ledger), rtol=1e-12, atol=1e-12)


def dense(ledger: Ledger) -> torch.Tensor:
    """A at once, from every row."""
    prior_II = random_prior(WIDTH).moments[NAME].double() * 10.0
    keys_TI, _ = ledger.rows_of(NAME, ledger.edit_ids)
    return prior_II + 0.03 * prior_II.diagonal().mean() * torch.eye(WIDTH).double() + keys_TI.T @ keys_TI


def test_reverting_one_of_ten_thousand_edits_sums_at_most_two_blocks_again(sums: list[int]) -> None:
    ledger = empty()
    for number in range(312):
        ledger.commit(batch(number, 32))
    ledger.commit(batch(312, 16))
    assert len(ledger.edit_ids) == 10_000
    ledger.without().factor(NAME)
    num_blocks = len(sums)
    assert num_blocks > 300
    for edit_id in random.Random(1).sample(ledger.edit_ids, 20):  # noqa: S311
        sums.clear()
        ledger.without([edit_id]).factor(NAME)
        assert len(sums) <= 1, "beside the last block, which is added batch by batch"
        assert sum(sums) < 40 * blocks.ROWS_PER_BLOCK * WIDTH
        ledger.commit(NOTHING, [edit_id])
        ledger.without().factor(NAME)
        assert len(sums) <= 1, "what the trial has made is kept"


def test_a_block_that_loses_its_first_edit_joins_the_one_before(sums: list[int]) -> None:
    ledger = empty()
    for number in range(20):
        ledger.commit(batch(number))
    ledger.without().factor(NAME)
    num_blocks = len(ledger._rows._starts[NAME])
    first = next(edit_id for edit_id in ledger.edit_ids[8:-40] if starts_block(edit_id, 1, WIDTH))
    sums.clear()
    ledger.commit(NOTHING, [first])
    ledger.without().factor(NAME)
    assert len(sums) == 1
    assert len(ledger._rows._starts[NAME]) == num_blocks - 1


def test_trials_of_one_batch_share_the_sums_that_are_equal(sums: list[int]) -> None:
    ledger = empty()
    for number in range(40):
        ledger.commit(batch(number))
    ledger.without().factor(NAME)
    early, late = "1-3", "20-5"
    sums.clear()
    ledger.without([early, late]).factor(NAME)
    assert 1 <= len(sums) <= 2
    num_made = len(sums)
    ledger.without([early]).factor(NAME)
    ledger.without([late]).factor(NAME)
    ledger.without([late, early]).factor(NAME)
    assert len(sums) == num_made


def test_sums_of_trials_that_came_to_nothing_are_let_go() -> None:
    """Each takes as much of the disk as a matrix, and refused removals may follow each other for long."""
    ledger = empty()
    for number in range(40):
        ledger.commit(batch(number))
    ledger.without().factor(NAME)
    closed = dict(ledger._rows._sums)
    for edit_id in ("1-3", "20-5", "30-1"):
        ledger.without([edit_id]).factor(NAME)
    assert len(ledger._rows._sums) == len(closed) + 3
    ledger.forget_trials()
    assert ledger._rows._sums.keys() == closed.keys()


def test_rows_that_come_in_are_added_and_no_sum_is_made_again(sums: list[int]) -> None:
    ledger = empty()
    for number in range(200):
        ledger.commit(batch(number))
        ledger.without().factor(NAME)
    assert len(sums) == len(ledger._rows._starts[NAME]), "each block once, when it is closed"


def test_rows_of_a_long_ledger_lie_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(tmp_path)
    for number in range(71):
        written.commit(batch(number))
    mapped = [is_mapped(keys_of(rows)) for rows in written.ledger._rows._batches.values()]
    assert mapped == [True] * 70 + [False], "of a process that goes on all but those of the last batches"
    assert all(is_mapped(keys_of(rows)) for rows in written.read()._rows._batches.values())
    assert all(is_mapped(one) for one in written.ledger._rows._sums.values())


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in pages of a file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        borders, _, _, _, inode, *_ = line.split()
        first, end = (int(border, 16) for border in borders.split("-"))
        if first <= address < end:
            return inode != "0"
    return False


def test_a_disk_without_room_leaves_everything_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: object) -> None:
        return None

    full, ledger = empty(), empty()
    for number in range(40):
        ledger.commit(batch(number))
    monkeypatch.setattr("editors.solve.blocks.on_disk", is_full)
    monkeypatch.setattr("editors.solve.rows.on_disk", is_full)
    for number in range(40):
        full.commit(batch(number))
    assert torch.equal(full.without().matrix(NAME), ledger.without().matrix(NAME))


def test_one_edit_in_so_many_begins_a_block_by_its_rows_and_by_its_id_alone() -> None:
    ids = [str(number) for number in range(20_000)]
    for num_rows in (1, 3):
        share = sum(starts_block(edit_id, num_rows, 25) for edit_id in ids) / len(ids)
        assert share == pytest.approx(num_rows / 100, rel=0.15)
    assert not any(starts_block(edit_id, 0, 1) for edit_id in ids)


def test_a_block_sums_the_same_however_its_rows_came() -> None:
    keys_TI = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))
    whole = block_sum([keys_TI], WIDTH)
    assert torch.equal(block_sum(list(keys_TI.split(7)), WIDTH), whole)
    torch.testing.assert_close(whole, keys_TI.double().T @ keys_TI.double(), rtol=1e-13, atol=1e-13)
    assert torch.equal(block_sum([], WIDTH), torch.zeros(WIDTH, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("is_read", [False, True])
def test_an_edit_that_came_back_leaves_by_its_new_rows_alone(tmp_path: Path, is_read: bool) -> None:
    written, back = Written(tmp_path), random_rows(7, {"0-0": 1}, width=WIDTH)
    written.commit(batch(0))
    written.commit(batch(1), ["0-0"])
    written.commit(back)
    ledger = written.read() if is_read else written.ledger
    keys_TI, targets_TO = ledger.rows_of(NAME, ["0-0", "0-1"])
    expected = batch(0).only(["0-1"])
    torch.testing.assert_close(keys_TI.float(), torch.cat([keys_of(expected), keys_of(back)]), rtol=0, atol=0)
    torch.testing.assert_close(targets_TO.float(), torch.cat([targets_of(expected), targets_of(back)]), rtol=0, atol=0)


def test_edits_without_a_row_here_stay_active_when_their_batches_move_to_disk() -> None:
    ledger = empty()
    for number in range(blocks.BATCHES_PER_FILE):
        names = [f"{number}-{place}" for place in range(3)]
        rows = random_rows(number, {names[0]: 1}, width=WIDTH)
        elsewhere = {"other.weight": tuple((name, place, place + 1) for place, name in enumerate(names))}
        ledger.commit(replace(rows, ranges={**rows.ranges, **elsewhere}))
    assert len(ledger.edit_ids) == 3 * blocks.BATCHES_PER_FILE
    ledger.commit(NOTHING, ["0-1"])
    keys_TI, _ = ledger.rows_of(NAME, ["0-0", "0-2"])
    assert len(keys_TI) == 1
