"""Rows in a few bits a number: near what they were, the same when packed again, and no larger than is said."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editors.solve.ledger import Ledger
from editors.solve.packing import BLOCK, Packed, packed_bytes, rounded
from editors.solve.rows import EditRows, consecutive, load_batches, on_disk, save_batches
from editors.solve.shared_targets import KEY_BITS, SharedTargets
from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.rank_api import FileRef, LedgerRows
from tests.support.ledger_parts import NAME, random_prior, random_rows, whole_shift


def heavy(num_rows: int, width: int, *, seed: int = 0) -> Tensor:
    """Rows like keys: a few numbers are many times larger than the others."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=draw) ** 3


ROWS = [
    heavy(5, 1536),
    heavy(3, 64),
    heavy(4, 7),
    heavy(2, 130) * 1e30,
    heavy(2, 96) * 1e-30,
    heavy(2, 96) * 1e-37,
    torch.zeros(2, 70),
    torch.zeros(0, 70),
    torch.full((1, 65), -3.0),
    torch.tensor([[0.0] * 63 + [5.0] + [0.0] * 10]),
]


@pytest.mark.parametrize("bits", [2, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{tuple(rows.shape)}")
def test_rows_that_were_packed_come_back_bit_for_bit_when_they_are_packed_again(rows: Tensor, bits: int) -> None:
    packed = Packed.of(rows, bits=bits)
    assert (packed.bits if len(rows) else bits, packed.shape, len(packed)) == (bits, tuple(rows.shape), len(rows))
    again = Packed.of(packed.whole(), bits=bits)
    assert torch.equal(again.codes, packed.codes)
    assert torch.equal(again.scales, packed.scales)
    assert torch.equal(again.whole(), packed.whole())
    assert torch.equal(rounded(rows, bits=bits), packed.whole())


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_number_is_the_nearest_signed_square_of_its_scale(bits: int) -> None:
    rows = heavy(4, 200)
    found = Packed.of(rows, bits=bits).whole()
    largest = 2 ** (bits - 1) - 1
    for row, of_row in zip(rows.tolist(), found.tolist(), strict=True):
        for start in range(0, len(row), BLOCK):
            block = row[start : start + BLOCK]
            scale = float(torch.tensor(max(map(abs, block)) / largest**2).bfloat16())
            for value, packed in zip(block, of_row[start : start + BLOCK], strict=True):
                code = min(round(math.sqrt(abs(value) / scale)), largest)
                assert packed == math.copysign(scale * code * code, value) or packed == code == 0


def test_a_key_in_six_bits_is_the_key_but_for_a_thirtieth_of_its_length() -> None:
    rows = heavy(50, 1536)
    error = (rounded(rows, bits=KEY_BITS) - rows).norm(dim=1) / rows.norm(dim=1)
    assert float(error.max()) < 1 / 25


def test_a_row_is_packed_alike_whatever_lies_beside_it() -> None:
    rows = heavy(6, 100)
    packed = Packed.of(rows, bits=6)
    for place in range(6):
        alone = Packed.of(rows[place : place + 1], bits=6)
        assert torch.equal(alone.codes, packed[place : place + 1].codes)
    chosen = torch.tensor([4, 1])
    assert torch.equal(packed[chosen].whole(), packed.whole()[chosen])


@pytest.mark.parametrize(("width", "bits"), [(1536, 6), (576, 8), (7, 6), (65, 5)])
def test_a_row_takes_the_bytes_that_are_planned_for_it(width: int, bits: int) -> None:
    assert Packed.of(heavy(3, width), bits=bits).nbytes == 3 * packed_bytes(width, bits=bits)


def shared(seed: int, shifts: list[int], *, out: int = 5) -> SharedTargets:
    """Targets of rows with a shift each, -1 for a guard's."""
    draw = torch.Generator().manual_seed(seed)
    num_shifts = max(shifts, default=-1) + 1
    spread_TH = torch.zeros(len(shifts), num_shifts, dtype=torch.float64)
    for row, shift in enumerate(shifts):
        if shift >= 0:
            spread_TH[row, shift] = (1 / shifts.count(shift)) ** 0.5
    held_TO = torch.randn(len(shifts), out, generator=draw, dtype=torch.float64)
    asked_HO = torch.randn(num_shifts, out, generator=draw, dtype=torch.float64)
    return SharedTargets.of(held_TO, spread_TH, asked_HO)


def test_targets_are_what_was_held_and_the_shift_that_rows_share() -> None:
    draw = torch.Generator().manual_seed(3)
    spread_TH = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    held_TO, asked_HO = (torch.randn(num, 70, generator=draw, dtype=torch.float64) for num in (4, 2))
    targets = SharedTargets.of(held_TO, spread_TH, asked_HO)
    assert targets.shift_T.tolist() == [0, 0, -1, 1]
    wrong_TO = targets.whole().double() - held_TO - spread_TH @ asked_HO
    assert float((wrong_TO.norm(dim=1) / held_TO.norm(dim=1)).max()) < 2**-11, "what was held is in fp16"
    none = SharedTargets.of(torch.zeros(4, 70), spread_TH, asked_HO)
    torch.testing.assert_close(none.whole().double(), spread_TH @ asked_HO, rtol=1e-7, atol=1e-7)


def test_targets_of_some_rows_bring_only_the_shifts_that_these_ask_for() -> None:
    targets = shared(1, [0, 0, -1, 1, 2, 1, -1, 3])
    for places in (slice(None), slice(3, 6), slice(2, 3), slice(0), torch.tensor([0, 7]), torch.tensor([6, 3])):
        some = targets[places]
        assert torch.equal(some.whole(), targets.whole()[places])
        assert len(some.asked_HO) == len({shift for shift in targets.shift_T[places].tolist() if shift >= 0})
    parts = [targets[:3], targets[3:]]
    assert torch.equal(SharedTargets.joined(parts).whole(), targets.whole())


def packed_rows(seed: int, edits: dict[str, list[int]], *, width: int = 12) -> EditRows:
    """Rows of edits with frames: of each edit the shifts of its rows, counted within the edit."""
    shifts: list[int] = []
    for of_edit in edits.values():
        first = max(shifts, default=-1) + 1
        shifts += [shift + first if shift >= 0 else -1 for shift in of_edit]
    return EditRows(
        keys={NAME: Packed.of(heavy(len(shifts), width, seed=seed), bits=KEY_BITS)},
        targets={NAME: shared(seed, shifts)},
        ranges={NAME: consecutive([(edit_id, len(of_edit)) for edit_id, of_edit in edits.items()])},
    )


BATCHES = [
    packed_rows(1, {"a": [0, 0, -1], "b": [0, 1, 0]}),
    packed_rows(2, {"c": [-1]}),
    packed_rows(3, {"d": [0], "e": [0, 0, -1]}),
]


def same(found: EditRows, expected: EditRows) -> bool:
    """Whether two batches have the same rows, bit for bit."""
    return (
        found.ranges == expected.ranges
        and torch.equal(found.keys_of(NAME), expected.keys_of(NAME))
        and torch.equal(found.targets_of(NAME), expected.targets_of(NAME))
    )


def test_packed_batches_of_a_file_come_back_bit_for_bit_and_packed(tmp_path: Path) -> None:
    digest = save_batches(tmp_path / "rows", BATCHES)
    read = load_batches(tmp_path / "rows", digest)
    assert all(same(again, rows) for again, rows in zip(read, BATCHES, strict=True))
    assert all(isinstance(rows.keys[NAME], Packed) for rows in read)
    assert all(isinstance(rows.targets[NAME], SharedTargets) for rows in read)
    assert save_batches(tmp_path / "again", read) == digest
    only = read[0].only({"b"})
    assert torch.equal(only.targets_of(NAME), BATCHES[0].targets_of(NAME)[3:])
    assert only.num_rows == 3


def test_a_file_takes_a_removal_without_rows_beside_packed_batches(tmp_path: Path) -> None:
    removal = random_rows(0, {})
    read = load_batches(tmp_path / "rows", save_batches(tmp_path / "rows", [*BATCHES, removal]))
    assert isinstance(read[0].keys[NAME], Packed)
    assert [rows.edit_ids for rows in read] == [*(rows.edit_ids for rows in BATCHES), ()]


def test_rows_of_before_lie_beside_packed_ones_and_keep_their_bits(tmp_path: Path) -> None:
    former = random_rows(7, {"f": 2, "g": 1})
    read = load_batches(tmp_path / "rows", save_batches(tmp_path / "rows", [former, *BATCHES]))
    assert all(same(again, rows) for again, rows in zip(read, [former, *BATCHES], strict=True))
    ledgers = [Ledger(random_prior(12), strength=10.0, ridge=0.03, batches=rows) for rows in ([former, *BATCHES], read)]
    assert torch.equal(*(ledger.without(["f", "b"]).matrix(NAME) for ledger in ledgers))
    assert torch.equal(*(whole_shift(ledger, NAME) for ledger in ledgers))


def test_a_ledger_of_packed_rows_has_the_bits_of_its_files(tmp_path: Path) -> None:
    lived = Ledger(random_prior(12), strength=10.0, ridge=0.03)
    files = []
    for place, rows in enumerate(BATCHES):
        lived.without().factor(NAME)
        lived.commit(rows, ["b"] if place == 1 else [])
        path = tmp_path / str(place)
        edit_ids = tuple(edit_id for edit_id in rows.edit_ids if edit_id != "b")
        files.append(LedgerRows(file=FileRef(path=str(path), digest=rows.save(path)), edit_ids=edit_ids))
    prior = FileRef(path=str(tmp_path / "prior"), digest=random_prior(12).save(tmp_path / "prior"))
    read = Ledger.from_files(prior, files, strength=10.0, ridge=0.03)
    assert read.edit_ids == lived.edit_ids == ("a", "c", "d", "e")
    assert torch.equal(read.without().matrix(NAME), lived.without().matrix(NAME))
    assert torch.equal(whole_shift(read, NAME), whole_shift(lived, NAME))
    for edit_ids in (("a", "e"), ("d",)):
        assert all(
            torch.equal(*pair) for pair in zip(read.rows_of(NAME, edit_ids), lived.rows_of(NAME, edit_ids), strict=True)
        )


def test_packed_rows_are_mapped_from_the_disk() -> None:
    moved = on_disk(lambda path: save_batches(path, BATCHES), load_batches)
    assert moved is not None
    assert all(same(again, rows) for again, rows in zip(moved, BATCHES, strict=True))


def test_a_file_whose_packed_tensors_do_not_fit_each_other_is_noticed(tmp_path: Path) -> None:
    wrong = EditRows(keys={NAME: BATCHES[0].keys[NAME][:4]}, targets=BATCHES[0].targets, ranges=BATCHES[0].ranges)
    with pytest.raises(IntegrityBroken, match="expected row"):
        load_batches(tmp_path / "rows", wrong.save(tmp_path / "rows"))
