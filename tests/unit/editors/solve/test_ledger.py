"""The ledger: its sums, its files, and that what comes back from files has the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editors.solve.gram import Gram
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from editors.solve.rows import EditRows
from pipeline.domain.errors import IntegrityBroken, UnknownRecord
from pipeline.domain.rank_api import FileRef, LedgerRows
from tests.support.ledger_parts import NAME, random_prior, random_rows


def make_ledger(*batches: EditRows) -> Ledger:
    ledger = Ledger(random_prior(12), strength=10.0, ridge=0.03)
    for batch in batches:
        ledger.commit(batch)
    return ledger


def test_the_whole_shift_is_the_dense_solve_of_all_rows() -> None:
    first, second = random_rows(1, {"a": 2, "b": 1}), random_rows(2, {"c": 3})
    ledger = make_ledger(first, second)
    keys = torch.cat([first.keys[NAME], second.keys[NAME]]).double()
    targets = torch.cat([first.targets[NAME], second.targets[NAME]]).double()
    prior = random_prior(12).moments[NAME].double() * 10
    dense = prior + 0.03 * prior.diagonal().mean() * torch.eye(12).double() + keys.T @ keys
    expected = torch.linalg.solve(dense, keys.T @ targets)
    torch.testing.assert_close(ledger.whole_shift(NAME), expected, rtol=1e-10, atol=1e-12)


def test_an_edit_that_leaves_leaves_no_trace() -> None:
    first, second = random_rows(1, {"a": 2, "b": 1}), random_rows(2, {"c": 3, "d": 2})
    without = make_ledger(first, second).without(["b", "c"])
    never = make_ledger(first.only({"a"}), second.only({"d"}))
    assert without.edit_ids == ("a", "d")
    assert torch.equal(without.whole_shift(NAME), never.whole_shift(NAME))


def test_taking_out_changes_a_copy_only() -> None:
    ledger = make_ledger(random_rows(1, {"a": 2, "b": 1}))
    before = ledger.matrix(NAME)
    ledger.without(["a"])
    assert ledger.edit_ids == ("a", "b")
    assert torch.equal(ledger.matrix(NAME), before)


def test_a_ledger_from_files_has_the_same_bits(tmp_path: Path) -> None:
    batches = [random_rows(1, {"a": 2, "b": 1}), random_rows(2, {"c": 3}), random_rows(3, {"d": 1})]
    lived = make_ledger(*batches)
    lived.matrix(NAME)  # sums made before the next commit, as in a process that goes on
    last = random_rows(4, {"e": 2})
    lived.commit(last, ["c", "a"])
    prior = tmp_path / "prior.safetensors"
    digest = random_prior(12).save(prior)
    files = []
    for place, (batch, active) in enumerate(zip([*batches, last], [("b",), (), ("d",), ("e",)], strict=True)):
        path = tmp_path / f"{place}.safetensors"
        files.append(LedgerRows(file=FileRef(path=str(path), digest=batch.save(path)), edit_ids=active))
    read = Ledger.from_files(FileRef(path=str(prior), digest=digest), files, strength=10.0, ridge=0.03)
    assert read.edit_ids == lived.edit_ids == ("b", "d", "e")
    assert torch.equal(read.matrix(NAME), lived.matrix(NAME))
    assert torch.equal(read.whole_shift(NAME), lived.whole_shift(NAME))


def test_a_commit_that_fails_leaves_the_sums_of_the_rows_before(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("first", "second")
    ledger = Ledger(random_prior(12, *names), strength=10.0, ridge=0.03)
    before = {name: ledger.matrix(name) for name in names}
    add, calls = Gram.add, []

    def is_out_of_memory(sums: Gram, keys_TI: torch.Tensor) -> None:
        calls.append(sums)
        if len(calls) == 2:
            raise MemoryError
        add(sums, keys_TI)

    monkeypatch.setattr(Gram, "add", is_out_of_memory)
    rows = random_rows(1, {"a": 2})
    with pytest.raises(MemoryError):
        ledger.commit(
            replace(
                rows,
                keys=dict.fromkeys(names, rows.keys[NAME]),
                targets=dict.fromkeys(names, rows.targets[NAME]),
            )
        )
    assert len(calls) == 2
    assert ledger.edit_ids == ()
    assert all(torch.equal(ledger.matrix(name), before[name]) for name in names)


def test_a_ledger_that_everything_left_is_the_prior_again() -> None:
    ledger = make_ledger(random_rows(1, {"a": 2}))
    ledger.commit(random_rows(2, {}), ["a"])
    assert ledger.edit_ids == ()
    assert torch.equal(ledger.matrix(NAME), make_ledger().matrix(NAME))


def test_rows_keep_their_bytes_and_their_order(tmp_path: Path) -> None:
    rows = random_rows(1, {"a": 2, "b": 0, "c": 3})
    digest = rows.save(tmp_path / "1")
    again = EditRows.load(tmp_path / "1", digest)
    assert again.ranges == rows.ranges
    assert again.save(tmp_path / "2") == digest


def test_what_is_not_in_the_ledger_cannot_leave_it() -> None:
    with pytest.raises(UnknownRecord, match="nobody"):
        make_ledger(random_rows(1, {"a": 2})).without(["nobody"])


def test_rows_that_a_file_does_not_have_are_noticed(tmp_path: Path) -> None:
    prior, path = tmp_path / "prior", tmp_path / "rows"
    digest, rows = random_prior(12).save(prior), random_rows(1, {"a": 2}).save(path)
    wanted = LedgerRows(file=FileRef(path=str(path), digest=rows), edit_ids=("a", "lost"))
    with pytest.raises(IntegrityBroken, match="lost"):
        Ledger.from_files(FileRef(path=str(prior), digest=digest), [wanted], strength=1.0, ridge=0.03)
    with pytest.raises(IntegrityBroken, match="digest"):
        Ledger.from_files(FileRef(path=str(prior), digest="0" * 64), [], strength=1.0, ridge=0.03)


def rows_by_parameter() -> EditRows:
    """Edits `a` and `b`, whose rows differ in number between two parameters; `b` has none in the first."""
    first, second = random_rows(5, {"a": 2, "b": 0}), random_rows(6, {"a": 1, "b": 3}, width=7)
    return EditRows(
        keys={"first": first.keys[NAME], "second": second.keys[NAME]},
        targets={"first": first.targets[NAME], "second": second.targets[NAME]},
        ranges={"first": first.ranges_of(NAME), "second": second.ranges_of(NAME)},
    )


def test_parameters_may_have_other_rows_of_the_same_edits(tmp_path: Path) -> None:
    rows = rows_by_parameter()
    assert rows.edit_ids == ("a", "b")
    assert rows.num_rows == 4
    only = rows.only({"b"})
    assert only.ranges_of("first") == (("b", 0, 0),)
    assert only.ranges_of("second") == (("b", 0, 3),)
    assert torch.equal(only.keys["second"], rows.keys["second"][1:])
    assert only.targets["first"].shape == (0, 5)
    digest = rows.save(tmp_path / "1")
    again = EditRows.load(tmp_path / "1", digest)
    assert again.ranges == rows.ranges
    assert again.save(tmp_path / "2") == digest


def test_an_edit_without_rows_in_one_parameter_can_leave_the_ledger() -> None:
    moments = {name: random_prior(width, name).moments[name] for name, width in (("first", 12), ("second", 7))}
    ledger = Ledger(Prior(moments=moments, num_tokens=48), strength=10.0, ridge=0.03)
    ledger.commit(rows_by_parameter())
    without = ledger.without(["b"])
    assert without.edit_ids == ("a",)
    assert torch.equal(without.whole_shift("first"), ledger.whole_shift("first"))
    assert not torch.equal(without.whole_shift("second"), ledger.whole_shift("second"))


def test_ranges_that_do_not_cover_the_rows_are_noticed(tmp_path: Path) -> None:
    rows = random_rows(1, {"a": 2, "b": 1})
    for place, wrong in enumerate([(("a", 0, 2),), (("a", 0, 2), ("b", 1, 3)), {"elsewhere": rows.ranges_of(NAME)}]):
        path = tmp_path / str(place)
        digest = replace(rows, ranges=wrong).save(path)
        with pytest.raises(IntegrityBroken, match="expected row"):
            EditRows.load(path, digest)
