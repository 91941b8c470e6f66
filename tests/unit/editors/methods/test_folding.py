"""Folding: many facts learnt into the pristine weights in every frame, with little change to text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.measure.losses import Reading, divergences
from editors.measure.scoring import Prepared, prepare, readings
from editors.methods.base import EditJob
from editors.methods.fine_tuning import FineTuning, FineTuningEditor
from editors.methods.folding import MOMENTUM, SQUARES, FoldEditor, Folding, _inverse_root, _Pace
from editors.methods.frames import frames_of
from editors.methods.recursive import RecursiveEditor
from editors.models.families import EditableModel
from editors.models.hooks import side_branch
from editors.models.tokens import Encoded
from editors.weights.deltas import WeightDelta
from pipeline.domain.errors import EditorFailed, InvalidInput, Misconfigured
from pipeline.domain.rank_api import EditorSettings
from tests.support.framed_parts import framed_edits, framed_job, framed_rig, framed_settings, keep
from tests.support.ledger_parts import Rig, prior_lines
from tests.support.scored import score_pairs

FOLDING = Folding(learning_rate=0.02, num_rounds=300, batch=4, num_text=4, c_text=2.0)
USE = EditorSettings(rephrase_rows=1000)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return framed_rig(tmp_path)


def job(rig: Rig) -> EditJob:
    return EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=framed_edits())


def divergence_on_text(rig: Rig, delta: WeightDelta) -> float:
    """Mean KL on lines of text, nats a token."""
    return divergence(rig, delta, [rig.model.encode_text(line, max_tokens=24) for line in prior_lines()])


def divergence(rig: Rig, delta: WeightDelta, sequences: Sequence[Encoded]) -> float:
    """Mean KL of sequences, of each the mean over its tokens, nats."""
    prepared = prepare(rig.model, sequences)
    before = readings(rig.model, prepared)
    found = []
    with torch.no_grad(), side_branch(rig.model.module, delta.factors):
        for places, batch in prepared:
            log_NV = rig.model.target_logits(batch).float().log_softmax(dim=1)
            for row, place in enumerate(places):
                found.append(float(divergences(before[place], log_NV[batch.row_N == row]).mean()))
    return sum(found) / len(found)


def test_every_fact_holds_in_every_frame_and_text_changes_less_than_by_fine_tuning(rig: Rig) -> None:
    before = {name: value.clone() for name, value in rig.model.module.state_dict().items()}
    result = FoldEditor(FOLDING, prior_lines(), USE).edit(job(rig))
    assert 0 < result.num_passes < FOLDING.num_rounds, "it ends when all of them hold"
    frames = [frame for edit in framed_edits() for frame in frames_of(rig.model, edit, USE).asked]
    assert len(frames) > 2 * len(framed_edits())
    with torch.no_grad(), side_branch(rig.model.module, result.delta.factors):
        for _, batch in prepare(rig.model, frames):
            assert bool((rig.model.target_logits(batch).argmax(dim=1) == batch.target_N).all())
    tuned = FineTuningEditor(FineTuning(learning_rate=0.02, num_steps=300)).edit(job(rig))
    assert divergence_on_text(rig, result.delta) < divergence_on_text(rig, tuned.delta)
    assert all(torch.equal(value, before[name]) for name, value in rig.model.module.state_dict().items())
    again = FoldEditor(FOLDING, prior_lines(), USE).edit(job(rig))
    for name, factors in result.delta.factors.items():
        assert all(torch.equal(one, other) for one, other in zip(factors, again.delta.factors[name], strict=True))


def test_facts_are_folded_into_the_pristine_base_only(rig: Rig) -> None:
    shift = {p.name: (torch.ones(p.in_features, 1), torch.ones(1, p.out_features)) for p in rig.model.inner}
    rig.weights.apply(WeightDelta.of(shift))
    with pytest.raises(Misconfigured, match="pristine base"):
        FoldEditor(FOLDING, (), USE).edit(job(rig))
    with pytest.raises(InvalidInput, match="to remove edits"):
        FoldEditor(FOLDING, (), USE).edit(
            EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=(), removed_ids=("a",))
        )


def test_it_begins_at_what_the_rows_of_the_facts_ask_for_together(rig: Rig) -> None:
    settings = framed_settings(rig)
    untouched = rig.weights.save()
    keep(rig, RecursiveEditor(settings).edit(framed_job(rig, framed_edits())))
    shifts = {name: rig.weights.shift(name).double() for name in rig.model.inner_param_names}
    rig.weights.restore(untouched)
    for name in rig.model.inner_param_names:
        assert torch.allclose(rig.ledger.shift(name), shifts[name], atol=1e-5)
    still = FoldEditor(replace(FOLDING, learning_rate=0.0, num_rounds=1), prior_lines(), USE).edit(job(rig))
    for name, (left, right) in still.delta.factors.items():
        assert torch.allclose((left @ right).double(), shifts[name], atol=1e-4)
    with pytest.raises(Misconfigured, match="the edits that are folded, got edit"):
        FoldEditor(FOLDING, (), USE).edit(replace(job(rig), added=framed_edits()[1:]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_rounds", 0), ("batch", -1), ("c_text", -0.5), ("stop_at", 0.0), ("stop_at", 1.1), ("eps", float("nan"))],
)
def test_a_setting_out_of_its_range_is_named(name: str, value: float) -> None:
    changed: Any = {name: value}
    with pytest.raises(Misconfigured, match=f"expected {name} of a fold: .*, got {value}"):
        Folding(**changed)
    with pytest.raises(Misconfigured, match="a finite number of at least 0, got inf"):
        Folding(c_text=math.inf)


def test_a_ledger_without_edits_asks_for_nothing(rig: Rig) -> None:
    with pytest.raises(EditorFailed, match="ledger with edits"):
        rig.ledger.shift(rig.model.inner_param_names[0])


def test_what_is_said_of_guards_stays(rig: Rig) -> None:
    asked = framed_job(rig, framed_edits())
    found = {}
    for weight in (0.0, 20.0):
        settings = replace(FOLDING, c_guards=weight, c_text=0.0, num_rounds=40, stop_at=0.6)
        delta = FoldEditor(settings, (), USE).edit(asked).delta
        guards = [
            guard
            for edit in asked.added
            for guard in frames_of(rig.model, edit, USE, asked.guards.get(edit.edit_id, ())).guards
        ]
        assert len(guards) == 4
        found[weight] = divergence(rig, delta, guards)
    assert found[20.0] < found[0.0] / 2


def test_a_matrix_of_one_entry_goes_as_adam_has_it() -> None:
    gradients = (0.3, -2.0, 0.5, 0.0, 4.0)
    ours, known = torch.zeros(1, 1), torch.zeros(1, 1, requires_grad=True)
    pace, adam = _Pace(ours, 0.1), torch.optim.Adam([known], lr=0.1, betas=(MOMENTUM, SQUARES), eps=0.0)
    for gradient in gradients:
        ours -= pace.step(torch.full((1, 1), gradient))
        known.grad = torch.full((1, 1), gradient)
        adam.step()
    assert torch.allclose(ours, known.detach(), rtol=1e-5)
    assert float(_Pace(ours, 0.1).step(torch.zeros(1, 1))) == 0.0, "where nothing pulls, nothing goes"


def test_an_entry_that_hardly_matters_hardly_moves() -> None:
    step = _Pace(torch.zeros(1, 2), 0.1).step(torch.tensor([[1.0, 1e-3]]))
    assert float(step[0, 1] / step[0, 0]) == pytest.approx(1e-3)
    assert float(step.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-5), "a step has the rate's length"


def test_a_step_goes_further_where_text_has_nothing() -> None:
    root = _inverse_root(torch.diag(torch.tensor([2.0, 1.0, 0.0])), 0.01)
    assert torch.allclose(root, torch.diag(torch.tensor([2.01, 1.01, 0.01]).rsqrt()), rtol=1e-5)
    draw = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = draw.T @ draw
    root = _inverse_root(moment, 0.1).double()
    known = moment / moment.diagonal().mean() + 0.1 * torch.eye(4, dtype=torch.float64)
    assert torch.allclose(root @ known @ root, torch.eye(4, dtype=torch.float64), atol=1e-5)


def test_without_text_only_the_moments_hold_what_is_there(rig: Rig) -> None:
    result = FoldEditor(FOLDING, (), USE).edit(job(rig))
    edits = framed_edits()
    with side_branch(rig.model.module, result.delta.factors):
        found = score_pairs(rig.model, [(edit.request.own_prompt, edit.request.target_new) for edit in edits])
    assert all(score.is_hit for score in found)


def test_of_many_answers_of_the_base_the_newest_are_kept_and_the_others_asked_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(model: EditableModel, prepared: Prepared) -> list[Reading]:
        found = readings(model, prepared)
        asked.append(len(found))
        return found

    monkeypatch.setattr("editors.methods.folding.readings", counted)
    settings = replace(FOLDING, num_rounds=4)
    whole = FoldEditor(settings, prior_lines(), USE).edit(job(rig)).delta
    num_once = sum(asked)
    assert num_once <= len(set(prior_lines())), "no line twice"
    asked.clear()
    monkeypatch.setattr("editors.methods.folding.MAX_READINGS", 3)
    few = FoldEditor(settings, prior_lines(), USE).edit(job(rig)).delta
    assert sum(asked) > num_once
    for name, (left, right) in whole.factors.items():
        assert torch.allclose(few.factors[name][0] @ few.factors[name][1], left @ right, rtol=1e-3, atol=1e-5)
