"""The ledger: its sums, its files, and that what comes back from files has the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editors.solve.gram import Gram
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from editors.solve.rows import EditRows, load_batches, on_disk, save_batches
from editors.weights.tensor_files import write_tensors
from pipeline.domain.errors import IntegrityBroken, UnknownRecord
from pipeline.domain.rank_api import FileRef, LedgerRows
from tests.support.ledger_parts import NAME, keys_of, random_prior, random_rows, targets_of, whole_shift


def make_ledger(*batches: EditRows) -> Ledger:
    ledger = Ledger(random_prior(12), strength=10.0, ridge=0.03)
    for batch in batches:
        ledger.commit(batch)
    return ledger


def test_the_whole_shift_is_the_dense_solve_of_all_rows() -> None:
    first, second = random_rows(1, {"a": 2, "b": 1}), random_rows(2, {"c": 3})
    ledger = make_ledger(first, second)
    keys = torch.cat([keys_of(first), keys_of(second)]).double()
    targets = torch.cat([targets_of(first), targets_of(second)]).double()
    prior = random_prior(12).moments[NAME].double() * 10
    dense = prior + 0.03 * prior.diagonal().mean() * torch.eye(12).double() + keys.T @ keys
    expected = torch.linalg.solve(dense, keys.T @ targets)
    torch.testing.assert_close(whole_shift(ledger, NAME), expected, rtol=1e-10, atol=1e-12)


def test_an_edit_that_leaves_leaves_no_trace() -> None:
    first, second = random_rows(1, {"a": 2, "b": 1}), random_rows(2, {"c": 3, "d": 2})
    ledger = make_ledger(first, second)
    never = make_ledger(first.only({"a"}), second.only({"d"}))
    assert torch.equal(ledger.without(["b", "c"]).matrix(NAME), never.without().matrix(NAME))
    ledger.commit(random_rows(3, {}), ["b", "c"])
    assert ledger.edit_ids == ("a", "d")
    assert torch.equal(whole_shift(ledger, NAME), whole_shift(never, NAME))


def test_taking_out_changes_a_copy_only() -> None:
    ledger = make_ledger(random_rows(1, {"a": 2, "b": 1}))
    before = ledger.without().matrix(NAME)
    assert not torch.equal(ledger.without(["a"]).matrix(NAME), before)
    assert ledger.edit_ids == ("a", "b")
    assert torch.equal(ledger.without().matrix(NAME), before)


def test_a_ledger_from_files_has_the_same_bits(tmp_path: Path) -> None:
    batches = [random_rows(1, {"a": 2, "b": 1}), random_rows(2, {"c": 3}), random_rows(3, {"d": 1})]
    lived = make_ledger(*batches)
    lived.without().matrix(NAME)  # sums made before the next commit, as in a process that goes on
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
    assert torch.equal(read.without().matrix(NAME), lived.without().matrix(NAME))
    assert torch.equal(whole_shift(read, NAME), whole_shift(lived, NAME))


def test_a_commit_that_fails_leaves_the_sums_of_the_rows_before(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("first", "second")
    ledger = Ledger(random_prior(12, *names), strength=10.0, ridge=0.03)
    before = {name: ledger.without().matrix(name) for name in names}
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
                keys=dict.fromkeys(names, keys_of(rows)),
                targets=dict.fromkeys(names, targets_of(rows)),
                ranges=dict.fromkeys(names, rows.ranges[NAME]),
            )
        )
    assert len(calls) == 2
    assert ledger.edit_ids == ()
    assert all(torch.equal(ledger.without().matrix(name), before[name]) for name in names)


def test_a_ledger_that_everything_left_is_the_prior_again() -> None:
    ledger = make_ledger(random_rows(1, {"a": 2}))
    ledger.commit(random_rows(2, {}), ["a"])
    assert ledger.edit_ids == ()
    assert torch.equal(ledger.without().matrix(NAME), make_ledger().without().matrix(NAME))


def test_rows_keep_their_bytes_and_their_order(tmp_path: Path) -> None:
    rows = random_rows(1, {"a": 2, "b": 0, "c": 3})
    digest = rows.save(tmp_path / "1")
    [again] = load_batches(tmp_path / "1", digest)
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
        keys={"first": keys_of(first), "second": keys_of(second)},
        targets={"first": targets_of(first), "second": targets_of(second)},
        ranges={"first": first.ranges[NAME], "second": second.ranges[NAME]},
    )


def test_parameters_may_have_other_rows_of_the_same_edits(tmp_path: Path) -> None:
    rows = rows_by_parameter()
    assert rows.edit_ids == ("a", "b")
    assert rows.num_rows == 4
    only = rows.only({"b"})
    assert only.ranges["first"] == (("b", 0, 0),)
    assert only.ranges["second"] == (("b", 0, 3),)
    assert torch.equal(keys_of(only, "second"), keys_of(rows, "second")[1:])
    assert only.targets["first"].shape == (0, 5)
    digest = rows.save(tmp_path / "1")
    [again] = load_batches(tmp_path / "1", digest)
    assert again.ranges == rows.ranges
    assert again.save(tmp_path / "2") == digest


def test_an_edit_without_rows_in_one_parameter_can_leave_the_ledger() -> None:
    moments = {name: random_prior(width, name).moments[name] for name, width in (("first", 12), ("second", 7))}
    ledger = Ledger(Prior(moments=moments, num_tokens=48), strength=10.0, ridge=0.03)
    ledger.commit(rows_by_parameter())
    before = {name: whole_shift(ledger, name) for name in moments}
    ledger.commit(ledger.batches[0].only(()), ["b"])
    assert ledger.edit_ids == ("a",)
    assert torch.equal(whole_shift(ledger, "first"), before["first"])
    assert not torch.equal(whole_shift(ledger, "second"), before["second"])


def test_ranges_that_do_not_cover_the_rows_are_noticed(tmp_path: Path) -> None:
    rows = random_rows(1, {"a": 2, "b": 1})
    whole = [["a", 0, 2], ["b", 2, 3]]
    wrong = [{NAME: whole[:1]}, {NAME: [["a", 0, 2], ["b", 1, 3]]}, {"elsewhere": whole}, [["a", 0, 2]], None]
    for place, ranges in enumerate(wrong):
        path = tmp_path / str(place)
        digest = write_ranges(path, rows, ranges)
        with pytest.raises(IntegrityBroken, match="expected row"):
            load_batches(path, digest)


def write_ranges(path: Path, rows: EditRows, ranges: object) -> str:
    tensors = {f"{NAME}.K": keys_of(rows), f"{NAME}.Y": targets_of(rows)}
    return write_tensors(path, tensors, {"kind": "rows", "ranges": ranges})


def test_a_file_that_says_once_whose_all_rows_are_is_still_read(tmp_path: Path) -> None:
    rows = random_rows(1, {"a": 2, "b": 1})
    digest = write_ranges(tmp_path / "old", rows, [["a", 0, 2], ["b", 2, 3]])
    [read] = load_batches(tmp_path / "old", digest)
    assert read.ranges == rows.ranges
    assert torch.equal(keys_of(read), keys_of(rows))


def test_a_file_of_several_batches_gives_each_of_them_back(tmp_path: Path) -> None:
    lengths: list[dict[str, int]] = [{"a": 2, "b": 0}, {"c": 3}, {"d": 1, "e": 2}]
    batches = [random_rows(seed, of_batch) for seed, of_batch in enumerate(lengths)]
    read = load_batches(tmp_path / "rows", save_batches(tmp_path / "rows", batches))
    assert [rows.ranges for rows in read] == [rows.ranges for rows in batches]
    for again, rows in zip(read, batches, strict=True):
        assert torch.equal(keys_of(again), keys_of(rows))
        assert torch.equal(targets_of(again), targets_of(rows))


def test_a_file_of_several_batches_makes_the_ledger_of_a_file_each(tmp_path: Path) -> None:
    batches = [random_rows(seed, {f"{seed}-a": 2, f"{seed}-b": 1}) for seed in range(3)]
    active = ("0-a", "1-a", "1-b", "2-b")
    prior = FileRef(path=str(tmp_path / "prior"), digest=random_prior(12).save(tmp_path / "prior"))
    together = tmp_path / "together"
    file = FileRef(path=str(together), digest=save_batches(together, batches))
    each = [FileRef(path=str(tmp_path / f"{i}"), digest=rows.save(tmp_path / f"{i}")) for i, rows in enumerate(batches)]
    by_batch = [tuple(edit_id for edit_id in active if edit_id[0] == str(i)) for i in range(3)]
    ledgers = [
        Ledger.from_files(prior, rows, strength=10.0, ridge=0.03)
        for rows in (
            [LedgerRows(file=file, edit_ids=active)],
            [LedgerRows(file=file, edit_ids=edit_ids) for edit_ids in by_batch],
            [LedgerRows(file=ref, edit_ids=edit_ids) for ref, edit_ids in zip(each, by_batch, strict=True)],
        )
    ]
    assert {ledger.edit_ids for ledger in ledgers} == {active}
    assert all(torch.equal(ledger.without().matrix(NAME), ledgers[-1].without().matrix(NAME)) for ledger in ledgers)


def test_rows_on_disk_leave_nothing_behind_and_a_full_disk_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = random_rows(1, {"a": 2})
    moved = on_disk(rows.save, load_batches)
    assert moved is not None
    assert torch.equal(keys_of(moved[0]), keys_of(rows))
    assert not list(tmp_path.iterdir())

    def is_full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    assert on_disk(is_full, load_batches) is None
