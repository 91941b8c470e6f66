"""What an edit's subject gives is held harder than it was asked, and the weights stay what the ledger defines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors.methods.recursive import RecursiveEditor
from editors.solve import shared_targets
from editors.solve.shared_targets import HELD_WEIGHT, SharedTargets, held_harder
from tests.support.framed_parts import edited, framed_edits, framed_job, framed_rig, framed_settings
from tests.support.ledger_parts import Rig, whole_shift


def test_heavier_rows_define_the_weights_that_they_reached_and_guards_stay() -> None:
    draw = torch.Generator().manual_seed(3)
    keys_TI, shift_IO = torch.randn(4, 6, generator=draw).double(), torch.randn(6, 5, generator=draw).double()
    held_TO, asked_HO = torch.randn(4, 5, generator=draw).double(), torch.randn(2, 5, generator=draw).double()
    spread_TH = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)

    keys, held, spread = held_harder(keys_TI, held_TO, spread_TH, keys_TI @ shift_IO)

    def left(keys_TI: torch.Tensor, targets_TO: torch.Tensor) -> torch.Tensor:
        return keys_TI.T @ (keys_TI @ shift_IO - targets_TO)

    before, after = left(keys_TI, held_TO + spread_TH @ asked_HO), left(keys, held + spread @ asked_HO)
    assert torch.allclose(before, after, atol=1e-12)
    assert torch.allclose(keys[:3].square().sum(dim=1), HELD_WEIGHT * keys_TI[:3].square().sum(dim=1))
    for part, of_before in ((keys, keys_TI), (held, held_TO), (spread, spread_TH)):
        assert torch.equal(part[3], of_before[3])


def test_the_ledger_defines_the_weights_and_only_rows_at_subjects_are_heavier(tmp_path: Path) -> None:
    rig = framed_rig(tmp_path)
    settings = framed_settings(rig)
    result = edited(rig, settings, framed_job(rig, framed_edits()))
    for name in rig.model.inner_param_names:
        shift_IO = rig.weights.shift(name).double()
        assert float((shift_IO - whole_shift(rig.ledger, name)).norm()) <= 1e-4 * float(shift_IO.norm())
        targets = result.rows.targets[name]
        assert isinstance(targets, SharedTargets)
        asking_T = targets.shift_T >= 0
        shares_T = targets.root_T[asking_T].square() * (HELD_WEIGHT if name in settings.subject_params else 1)
        num_T = torch.bincount(targets.shift_T[asking_T].long())[targets.shift_T[asking_T].long()]
        expected_T = 1 / num_T if name in settings.subject_params else torch.ones(len(shares_T))
        assert torch.allclose(shares_T, expected_T.float())


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
    monkeypatch.setattr(shared_targets, "HELD_WEIGHT", 1)
    assert harder < moved_by_a_later_edit(framed_rig(tmp_path / "as asked"))
