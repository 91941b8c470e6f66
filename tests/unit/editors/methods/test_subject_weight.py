"""What an edit's subject gives is asked and held harder than the rest, and the weights stay what the ledger defines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors.methods import edit_reading
from editors.methods.recursive import RecursiveEditor
from editors.methods.rekeying import kept_weight
from editors.solve.shared_targets import SUBJECT_WEIGHT, SharedTargets
from tests.support.framed_parts import edited, framed_edits, framed_job, framed_rig, framed_settings
from tests.support.ledger_parts import Rig, whole_shift


def test_the_ledger_defines_the_weights_and_only_rows_at_subjects_are_heavier(tmp_path: Path) -> None:
    rig = framed_rig(tmp_path)
    settings = framed_settings(rig)
    result = edited(rig, settings, framed_job(rig, framed_edits()))
    for name in rig.model.inner_param_names:
        shift_IO = rig.weights.shift(name).double()
        assert float((shift_IO - whole_shift(rig.ledger, name)).norm()) <= 1e-4 * float(shift_IO.norm())
        targets = result.rows.targets[name]
        assert isinstance(targets, SharedTargets)
        assert targets.held_TO.dtype is torch.float16
        asking_T = targets.shift_T >= 0
        num_T = torch.bincount(targets.shift_T[asking_T].long())[targets.shift_T[asking_T].long()]
        expected_T = SUBJECT_WEIGHT / num_T if name in settings.subject_params else torch.ones(int(asking_T.sum()))
        assert torch.allclose(targets.root_T[asking_T].square(), expected_T.float())


def moved_by_a_later_edit(rig: Rig) -> float:
    """How far a second edit moves what the keys of the first give, as a part of what it had reached."""
    settings = framed_settings(rig, num_subject=len(rig.model.inner_param_names))
    first, second = framed_edits()[:2]
    edited(rig, settings, framed_job(rig, [first]))
    later = RecursiveEditor(settings).edit(framed_job(rig, [second]))
    name = rig.model.inner_param_names[0]
    keys_TI, _ = rig.ledger.rows_of(name, [first.edit_id])
    keys_TI = torch.nn.functional.normalize(keys_TI, dim=1)
    left_IR, right_RO = (part.double() for part in later.delta.factors[name])
    return float(((keys_TI @ left_IR) @ right_RO).norm() / (keys_TI @ rig.weights.shift(name).double()).norm())


def test_a_later_edit_moves_an_earlier_one_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harder = moved_by_a_later_edit(framed_rig(tmp_path / "harder"))
    monkeypatch.setattr(edit_reading, "SUBJECT_WEIGHT", 1.0)
    assert harder < moved_by_a_later_edit(framed_rig(tmp_path / "as light as others"))


def test_rows_of_before_keep_their_weight_when_their_keys_are_read_again() -> None:
    """Rows of five frames: made today, held harder once they were made, never held harder, and one at an answer."""
    frames = 5
    today, light = (SUBJECT_WEIGHT / frames) ** 0.5, frames**-0.5
    stored_T, read_T = torch.tensor([today, light / 4, light, 1.0]), torch.tensor([today, today, today, 1.0])
    of_keys_T = torch.tensor([today, light * 4, light, 1.0])
    assert torch.allclose(kept_weight(stored_T, read_T) * read_T, of_keys_T)
