"""A ledger solved anew: keys read again block by block, another strength, rows of before; and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from editors.methods.base import EditJob, EditResult
from editors.methods.recursive import RecursiveEditor
from editors.methods.rekeying import RekeyJob, resolve
from editors.models.causal import CausalModel
from editors.models.hooks import capturing
from editors.solve.ledger import Ledger, batches_of
from editors.solve.rows import EditRows, save_batches
from editors.solve.shared_targets import SharedTargets
from editors.weights.deltas import PlainWeights
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, InvalidInput, UnknownRecord
from pipeline.domain.rank_api import EditorSettings, FileRef, LedgerRows
from tests.support.framed_parts import GUARDS, framed_edits, framed_job, framed_rig, framed_settings
from tests.support.ledger_parts import SETTINGS, Rig, edits_of, make_rig, whole_shift
from tests.support.pretend_device import PretendDevice

STRENGTH = SETTINGS.prior_strength


def plain(folder: Path) -> tuple[Rig, EditorSettings, list[Edit]]:
    """A stream of three batches without frames."""
    rig = make_rig(folder)
    for places in ((0, 1), (2, 3), (4,)):
        keep(rig, RecursiveEditor(SETTINGS).edit(job_of(rig, edits_of(*places))))
    return rig, SETTINGS, edits_of(0, 1, 2, 3, 4)


def framed(folder: Path) -> tuple[Rig, EditorSettings, list[Edit]]:
    """A stream of edits with frames and guards, whose rows are packed."""
    rig = framed_rig(folder)
    settings = framed_settings(rig)
    edits = framed_edits()
    for edit in edits:
        keep(rig, RecursiveEditor(settings).edit(framed_job(rig, [edit])))
    return rig, settings, edits


Make = Callable[[Path], tuple[Rig, EditorSettings, list[Edit]]]


def job_of(rig: Rig, added: Sequence[Edit]) -> EditJob:
    return EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=added)


def keep(rig: Rig, result: EditResult) -> None:
    rig.weights.apply(result.delta)
    rig.ledger.commit(result.rows, result.removed_ids)


def rekey(
    rig: Rig,
    settings: EditorSettings,
    *,
    edits: Sequence[Edit] = (),
    batches: Sequence[EditRows] = (),
    strength: float = STRENGTH,
) -> EditResult:
    return resolve(
        RekeyJob(
            model=rig.model,
            weights=rig.weights,
            ledger=rig.ledger,
            settings=settings,
            strength=strength,
            edits=edits,
            batches=batches,
            guards_of=lambda edits: {edit.edit_id: GUARDS for edit in edits if edit.request.subject},
        )
    )


def taken(rig: Rig, result: EditResult) -> Rig:
    """The rig with a result in its weights, and the ledger that came with it."""
    rig.weights.apply(result.delta)
    assert result.ledger is not None
    return replace(rig, ledger=result.ledger)


def distance(rig: Rig) -> float:
    """Of the accumulators from what the ledger's rows define, relative."""
    return max(
        float((rig.weights.shift(name).double() - whole_shift(rig.ledger, name)).norm())
        / float(whole_shift(rig.ledger, name).norm())
        for name in rig.model.inner_param_names
    )


def keys_now(rig: Rig, edits: Sequence[Edit], name: str) -> torch.Tensor:
    """The keys of edits without frames at their answer tokens, on the weights as they are."""
    batch = rig.model.pack([rig.model.encode_pair(e.request.prompt, e.request.target_new, None) for e in edits])
    [param] = [param for param in rig.model.inner if param.name == name]
    with torch.no_grad(), capturing(rig.model.module, {name: rig.model.key_positions(batch, param, "answer")}) as seen:
        rig.model.target_logits(batch)
    return seen.u_TI[name]


def test_after_it_every_key_is_the_one_that_the_model_has(tmp_path: Path) -> None:
    rig, settings, edits = plain(tmp_path)
    last = rig.model.inner_param_names[-1]
    stale, _ = rig.ledger.rows_of(last, rig.ledger.edit_ids)
    assert not torch.allclose(stale.float(), keys_now(rig, edits, last), atol=1e-4)
    rig = taken(rig, rekey(rig, settings, edits=edits))
    for name in rig.model.inner_param_names:
        keys_TI, _ = rig.ledger.rows_of(name, rig.ledger.edit_ids)
        torch.testing.assert_close(keys_TI.float(), keys_now(rig, edits, name), atol=1e-4, rtol=1e-4)


def test_targets_stay_and_the_first_block_was_exact(tmp_path: Path) -> None:
    rig, settings, edits = plain(tmp_path)
    first = rig.model.inner_param_names[0]
    before = {name: rig.ledger.rows_of(name, rig.ledger.edit_ids)[1] for name in rig.model.inner_param_names}
    shift = rig.weights.shift(first)
    rig = taken(rig, rekey(rig, settings, edits=edits))
    for name, targets_TO in before.items():
        torch.testing.assert_close(rig.ledger.rows_of(name, rig.ledger.edit_ids)[1], targets_TO)
    torch.testing.assert_close(rig.weights.shift(first), shift, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [plain, framed])
def test_rows_that_were_read_again_lie_on_disk_and_are_copied_nowhere(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, settings, edits = make(tmp_path)
    monkeypatch.setattr("editors.methods.rekeying.TOGETHER", 1)
    monkeypatch.setattr("editors.methods.rekeying.PER_FILE", 2)
    written: list[int] = []

    def counted(path: Path, batches: Sequence[EditRows]) -> str:
        written.append(len(batches))
        return save_batches(path, batches)

    monkeypatch.setattr("editors.solve.rows.save_batches", counted)
    result = rekey(rig, settings, edits=edits)
    assert len(result.batches) == len(edits)
    assert all(batch.is_mapped for batch in result.batches)
    assert max(written) == 2
    assert sum(written) == len(edits) * len(rig.model.inner_param_names), "each once"


@pytest.mark.parametrize("make", [plain, framed])
def test_the_new_ledger_defines_the_new_weights_and_edits_leave_it(make: Make, tmp_path: Path) -> None:
    rig, settings, edits = make(tmp_path)
    held = {name: rig.weights.shift(name).clone() for name in rig.model.inner_param_names}
    ids = rig.ledger.edit_ids
    result = rekey(rig, settings, edits=edits)
    assert all(torch.equal(rig.weights.shift(name), shift) for name, shift in held.items())
    assert (rig.ledger.edit_ids, rig.ledger.strength) == (ids, STRENGTH)
    assert result.distance is not None
    assert result.distance > 0
    rig = taken(rig, result)
    assert rig.ledger.edit_ids == ids
    assert distance(rig) < 1e-4
    leaving = RecursiveEditor(settings).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, removed_ids=[ids[0]])
    )
    keep(rig, leaving)
    assert rig.ledger.edit_ids == ids[1:]
    assert distance(rig) < 1e-4


def test_guards_ask_for_nothing_but_the_base(tmp_path: Path) -> None:
    rig, settings, edits = framed(tmp_path)
    name = settings.subject_params[0]
    result = rekey(rig, settings, edits=edits)
    [batch] = result.batches
    targets = batch.targets[name]
    assert isinstance(targets, SharedTargets)
    is_guard_T = targets.shift_T < 0
    assert int(is_guard_T.sum()) == len(GUARDS) * sum(edit.request.subject is not None for edit in edits)
    assert not targets.whole()[is_guard_T].any()


def test_the_same_ledger_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    rig, settings, edits = framed(tmp_path / "model")
    rig = taken(rig, result := rekey(rig, settings, edits=edits, strength=2 * STRENGTH))
    file = FileRef(path=str(tmp_path / "rows"), digest=save_batches(tmp_path / "rows", list(result.batches)))
    prior = FileRef(path=str(tmp_path / "prior"), digest=rig.ledger.prior.save(tmp_path / "prior"))
    rows = [LedgerRows(file=file, edit_ids=rig.ledger.edit_ids)]
    read = Ledger.from_files(prior, rows, strength=2 * STRENGTH, ridge=SETTINGS.ridge)
    for name in rig.model.inner_param_names:
        assert torch.equal(read.without().matrix(name), rig.ledger.without().matrix(name))


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_another_strength_alone_is_the_solve_of_the_same_rows_under_it(factor: float, tmp_path: Path) -> None:
    rig, settings, _ = plain(tmp_path)
    rows = {name: rig.ledger.rows_of(name, rig.ledger.edit_ids) for name in rig.model.inner_param_names}
    result = rekey(rig, settings, strength=factor * STRENGTH)
    assert result.batches == ()
    norms = {name: float(rig.weights.shift(name).norm()) for name in rows}
    rig = taken(rig, result)
    assert rig.ledger.strength == factor * STRENGTH
    assert distance(rig) < 1e-4
    for name, (keys_TI, targets_TO) in rows.items():
        found = rig.ledger.rows_of(name, rig.ledger.edit_ids)
        assert torch.equal(found[0], keys_TI)
        assert torch.equal(found[1], targets_TO)
        assert (float(rig.weights.shift(name).norm()) < norms[name]) == (factor > 1)


def test_rows_and_strength_of_before_bring_the_weights_of_before_back(tmp_path: Path) -> None:
    rig, settings, edits = framed(tmp_path / "model")
    before = {name: rig.weights.shift(name).clone() for name in rig.model.inner_param_names}
    file = FileRef(path=str(tmp_path / "rows"), digest=save_batches(tmp_path / "rows", list(rig.ledger.batches)))
    rows = (LedgerRows(file=file, edit_ids=rig.ledger.edit_ids),)
    rig = taken(rig, rekey(rig, settings, edits=edits, strength=3 * STRENGTH))
    rig = taken(rig, rekey(rig, settings, batches=list(batches_of(rows))))
    assert distance(rig) < 1e-4
    for name, shift in before.items():
        assert float((rig.weights.shift(name) - shift).norm()) < 1e-3 * float(shift.norm())


def test_on_an_accelerator_it_is_the_same_and_mixes_no_devices(tmp_path: Path) -> None:
    rig, settings, edits = framed(tmp_path)
    strength = 2 * STRENGTH
    expected = [rekey(rig, settings, edits=edits), rekey(rig, settings, strength=strength)]
    batches = rig.ledger.batches
    shifts = {name: rig.weights.shift(name) for name in rig.model.inner_param_names}
    with PretendDevice():
        there = load_base(tmp_path, device="cuda:0")
        assert isinstance(there, CausalModel)
        there.tokenizer.chat_template = rig.model.tokenizer.chat_template
        weights = PlainWeights(there.module, there.inner)
        weights.set_accumulators(shifts)
        ledger = Ledger(rig.ledger.prior, strength=STRENGTH, ridge=SETTINGS.ridge, batches=batches, device=there.device)
        moved = Rig(model=there, weights=weights, ledger=ledger)
        found = [rekey(moved, settings, edits=edits), rekey(moved, settings, strength=strength)]
        left = RecursiveEditor(settings).edit(
            EditJob(model=there, weights=weights, ledger=ledger, removed_ids=[edits[0].edit_id])
        )
        assert left.delta.factors
    for one, other in zip(expected, found, strict=True):
        for name, (left_IR, right_RO) in one.delta.factors.items():
            here, there_IO = left_IR @ right_RO, other.delta.factors[name][0] @ other.delta.factors[name][1]
            assert float((here - there_IO).norm()) <= 1e-3 * float(here.norm())


class ByHost:
    """Ranks that exchange on the CPU, of which there is one."""

    rank, num_ranks = 0, 1

    def gathered(self, own: Any) -> list[Any]:
        return [tree_map(lambda one: one.cpu() if isinstance(one, torch.Tensor) else one, own)]


def test_what_ranks_exchange_on_the_host_mixes_no_devices(tmp_path: Path) -> None:
    rig = framed_rig(tmp_path)
    settings = replace(framed_settings(rig), num_passes=1, change_bound=1e-3)
    with PretendDevice():
        there = load_base(tmp_path, device="cuda:0")
        assert isinstance(there, CausalModel)
        there.tokenizer.chat_template = rig.model.tokenizer.chat_template
        there.comm = ByHost()
        weights = PlainWeights(there.module, there.inner)
        ledger = Ledger(rig.ledger.prior, strength=STRENGTH, ridge=SETTINGS.ridge, device=there.device)
        moved = Rig(model=there, weights=weights, ledger=ledger)
        first, second = framed_edits()[:2]
        made = RecursiveEditor(settings).edit(framed_job(moved, [first]))
        keep(moved, made)
        changed = RecursiveEditor(settings).edit(framed_job(moved, [second], removed=(first.edit_id,)))
    assert made.scaled_back
    assert changed.removed_ids == (first.edit_id,)


def test_edits_that_are_not_those_of_the_ledger_are_refused(tmp_path: Path) -> None:
    rig, settings, edits = plain(tmp_path)
    with pytest.raises(UnknownRecord, match="expected the 5 edits of the ledger, got 4"):
        rekey(rig, settings, edits=edits[1:])


def test_an_edit_that_can_no_longer_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, settings, edits = framed(tmp_path)
    encode_pair = rig.model.encode_pair

    def stricter(prompt: Any, target: str, subject: str | None = None) -> Any:
        if prompt == edits[1].request.own_prompt:
            raise InvalidInput("expected fewer tokens")
        return encode_pair(prompt, target, subject)

    monkeypatch.setattr(rig.model, "encode_pair", stricter)
    with pytest.raises(EditorFailed, match=f"{edits[1].edit_id} cannot be read again: expected fewer tokens"):
        rekey(rig, settings, edits=edits)


def test_an_edit_whose_frames_are_others_now_is_named(tmp_path: Path) -> None:
    rig, settings, edits = framed(tmp_path)
    with pytest.raises(EditorFailed, match=f"rows of edit {edits[0].edit_id}.*submit it once more"):
        rekey(rig, replace(settings, rephrase_rows=0), edits=edits)
