"""Folding: many facts learnt into the pristine weights in every frame, with little change to text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors.measure.losses import divergences
from editors.measure.scoring import prepare, readings
from editors.methods.base import EditJob
from editors.methods.fine_tuning import FineTuning, FineTuningEditor
from editors.methods.folding import ALL_REPHRASES, FoldEditor, Folding, _inverse_root
from editors.methods.frames import frames_of
from editors.models.hooks import side_branch
from editors.weights.deltas import WeightDelta
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.domain.rank_api import EditorSettings
from tests.support.framed_parts import framed_edits, framed_rig
from tests.support.ledger_parts import Rig, prior_lines
from tests.support.scored import score_pairs

FOLDING = Folding(learning_rate=0.02, num_steps=300, batch=4, num_text=4, c_text=2.0)
USE = EditorSettings()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return framed_rig(tmp_path)


def job(rig: Rig) -> EditJob:
    return EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=framed_edits())


def divergence_on_text(rig: Rig, delta: WeightDelta) -> float:
    """Mean KL on lines of text, nats a token."""
    prepared = prepare(rig.model, [rig.model.encode_text(line, max_tokens=24) for line in prior_lines()])
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
    assert 0 < result.num_passes < FOLDING.num_steps, "it ends when all of them hold"
    frames = [
        frame
        for edit in framed_edits()
        for frame in frames_of(rig.model, edit, EditorSettings(rephrase_rows=ALL_REPHRASES)).asked
    ]
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
