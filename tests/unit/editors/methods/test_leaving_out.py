"""A candidate without some of its edits is what its ledger makes of the others, and what a revert would leave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors.methods import passes
from editors.methods.base import EditJob
from editors.methods.leaving_out import can_leave_out, without
from editors.methods.recursive import RecursiveEditor
from pipeline.domain.errors import UnknownRecord
from tests.support.factories import make_edit
from tests.support.framed_parts import edited, framed_edits, framed_job, framed_rig, framed_settings, keep
from tests.support.ledger_parts import SETTINGS, Rig, edits_of, make_rig, whole_shift
from tests.support.scored import score_pairs

TOLERANCE = 1e-2
"""Relative distance of weights that came about in other ways. Shared rows keep in fp16 what the weights before them
gave at answer tokens, and what leaves by them is off by that: measured 8e-3 at most, for a revert too; 3e-6 for rows
that are not shared."""


def shifts(rig: Rig) -> dict[str, torch.Tensor]:
    return {name: rig.weights.shift(name).double().clone() for name in rig.model.inner_param_names}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, shift_IO in expected.items():
        assert float((found[name] - shift_IO).norm()) <= TOLERANCE * float(shift_IO.norm())


@pytest.mark.parametrize("num_shared", [0, 2])
def test_what_stays_is_what_a_revert_of_the_others_leaves_and_no_pass_is_made(
    tmp_path: Path, num_shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = framed_rig(tmp_path)
    settings = framed_settings(rig, frames_per_pass=num_shared)
    older = make_edit("older", prompt="the king of Spain is", subject="Spain", target_new="Paris")
    gone = make_edit("gone", prompt="the river of Rome is", subject="Rome", target_new="Tokyo")
    edited(rig, settings, framed_job(rig, [older, gone]))
    saved, edits = rig.weights.save(), framed_edits()
    whole = RecursiveEditor(settings).edit(framed_job(rig, edits, removed=(gone.edit_id,)))
    assert can_leave_out(whole)
    monkeypatch.setattr(passes, "Reader", None)
    rest = without(framed_job(rig, edits[::2], removed=(gone.edit_id,)), whole)
    assert (rest.num_passes, rest.rows.edit_ids) == (0, tuple(edit.edit_id for edit in edits[::2]))
    assert rest.removed_ids == (gone.edit_id,)
    assert shifts(rig).keys() == rest.delta.factors.keys()
    keep(rig, rest)
    assert rig.ledger.edit_ids == (older.edit_id, *rest.rows.edit_ids)
    found = shifts(rig)
    assert_close(found, {name: whole_shift(rig.ledger, name) for name in found})

    rig.weights.restore(saved)
    other = framed_rig(tmp_path / "other")
    monkeypatch.undo()
    edited(other, settings, framed_job(other, [older, gone]))
    keep(other, whole)
    edited(other, settings, framed_job(other, [], removed=(edits[1].edit_id,)))
    assert_close(found, shifts(other))


def test_edits_that_stay_are_still_answered_and_the_one_left_out_is_not(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    edits = edits_of(*range(5))
    pairs = [(edit.request.prompt, edit.request.target_new) for edit in edits]
    before = [score.probability for score in score_pairs(rig.model, pairs)]
    job = EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits)
    whole = RecursiveEditor(SETTINGS).edit(job)
    rest = without(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits[:4]), whole)
    keep(rig, rest)
    after = [score.probability for score in score_pairs(rig.model, pairs)]
    assert min(after[:4]) > max(0.5, *before)
    assert after[4] < 0.5


def test_an_edit_that_the_candidate_does_not_have_is_named(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    edits = edits_of(*range(3))
    job = EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits[:2])
    whole = RecursiveEditor(SETTINGS).edit(job)
    with pytest.raises(UnknownRecord, match=edits[2].edit_id):
        without(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits), whole)


def test_a_candidate_that_was_scaled_back_is_made_anew(tmp_path: Path) -> None:
    rig = framed_rig(tmp_path)
    free = RecursiveEditor(framed_settings(rig)).edit(framed_job(rig, framed_edits()))
    norms = [norm / rig.weights.base_norm(name) for name, norm in free.delta.norms.items()]
    bounded = framed_settings(rig, change_bound=max(norms) / 2)
    assert not can_leave_out(RecursiveEditor(bounded).edit(framed_job(rig, framed_edits())))
