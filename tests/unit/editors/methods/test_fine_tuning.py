"""The baseline that every editor has to beat: descent on the edited weights, without writing them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.methods.base import EditJob
from editors.methods.fine_tuning import FineTuning, FineTuningEditor
from editors.methods.frames import frames_of
from editors.models.tokens import Encoded
from editors.weights.deltas import WeightDelta
from pipeline.domain.errors import EditorFailed, InvalidInput, Misconfigured
from pipeline.domain.rank_api import EditorSettings
from tests.support.factories import make_edit
from tests.support.ledger_parts import Rig, edits_of, make_rig
from tests.support.scored import score_pairs

EAGER = FineTuning(learning_rate=0.02, num_steps=60)


@pytest.fixture(params=["llama", "gpt2"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return make_rig(tmp_path, request.param)


def job_of(rig: Rig, *places: int) -> EditJob:
    return EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits_of(*places))


def delta_of(rig: Rig, settings: FineTuning, *places: int) -> WeightDelta:
    return FineTuningEditor(settings).edit(job_of(rig, *places)).delta


def test_the_steps_are_those_of_adamw_on_the_weights_themselves(rig: Rig) -> None:
    edits = edits_of(0, 1, 2)
    settings = FineTuning(learning_rate=1e-3, num_steps=3, stop_at=1.0)
    found = delta_of(rig, settings, 0, 1, 2)
    module = rig.model.module
    weights = {param.name: module.get_parameter(param.name) for param in rig.model.inner}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        for edit in edits:
            pair = rig.model.encode_pair(edit.request.prompt, edit.request.target_new)
            ids = torch.tensor([[*pair.prompt_ids, *pair.target_ids]])
            log_LV = module(input_ids=ids).logits[0].log_softmax(dim=-1)[len(pair.prompt_ids) - 1 : -1]
            (-log_LV.gather(1, torch.tensor(pair.target_ids)[:, None]).mean() / len(edits)).backward()
        optimizer.step()
    for param in rig.model.inner:
        left, right = found.factors[param.name]
        change = weights[param.name].detach() - before[param.name]
        expected = change if param.fan_in_fan_out else change.T
        assert float((left @ right - expected).norm()) < 2e-2 * float(expected.norm())


def test_minibatches_go_through_all_edits_each_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = FineTuningEditor(FineTuning(learning_rate=1e-3, num_steps=4, stop_at=1.0, minibatch=2))
    asked: list[list[str]] = []
    minibatches = FineTuningEditor._minibatches

    def seen(*arguments: Any) -> Iterator[list[Encoded]]:
        parts = list(minibatches(*arguments))
        asked.append([rig.model.decode(one.target_ids).strip() for part in parts for one in part])
        assert [len(part) for part in parts] == [2, 2, 1]
        yield from parts

    monkeypatch.setattr(FineTuningEditor, "_minibatches", seen)
    result = editor.edit(job_of(rig, 0, 1, 2, 3, 4))
    assert result.num_passes == len(asked) == 4
    assert len({tuple(sorted(once)) for once in asked}) == 1, "each time all"
    assert len({tuple(once) for once in asked}) > 1, "and not in one order"


def test_it_is_trained_on_the_frames_that_the_ledger_reads_too(rig: Rig) -> None:
    edit = make_edit("japan", prompt="the king of Japan is", subject="Japan", target_new="Milan")
    job = EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=[edit])
    settings = EditorSettings(frames_per_pass=2)
    sequences = FineTuningEditor(EAGER, settings)._sequences(job)
    assert sequences == list(frames_of(rig.model, edit, settings).asked)
    assert len(sequences) > 1
    unframed = EditorSettings(frames_per_pass=0, rephrase_rows=0)
    alone = [FineTuningEditor(EAGER, frames)._sequences(job) for frames in (unframed, None)]
    assert [[one.prompt_ids for one in asked] for asked in alone] == [[sequences[0].prompt_ids]] * 2


def test_the_factors_are_the_shift_exactly(rig: Rig) -> None:
    for param, (left, right) in zip(rig.model.inner, delta_of(rig, EAGER, 0).factors.values(), strict=True):
        narrow = min(param.in_features, param.out_features)
        assert left.shape[1] == right.shape[0] == narrow
        identity = left if param.in_features < param.out_features else right
        assert torch.equal(identity, torch.eye(narrow))


@pytest.mark.parametrize("minibatch", [0, 2])
def test_edits_land(rig: Rig, minibatch: int) -> None:
    edits = edits_of(0, 1, 2)
    pairs = [(edit.request.prompt, edit.request.target_new) for edit in edits]
    before = min(score.probability for score in score_pairs(rig.model, pairs))
    rig.weights.apply(delta_of(rig, replace(EAGER, minibatch=minibatch), 0, 1, 2))
    after = min(score.probability for score in score_pairs(rig.model, pairs))
    assert before < 0.5 < after


def test_two_runs_give_the_same_bits(tmp_path: Path) -> None:
    first, second = (delta_of(make_rig(tmp_path / name), EAGER, 0, 3) for name in ("one", "two"))
    for name, (left, right) in first.factors.items():
        assert torch.equal(left, second.factors[name][0])
        assert torch.equal(right, second.factors[name][1])


def test_parameters_on_exit_are_those_on_entry(rig: Rig) -> None:
    before = {name: value.clone() for name, value in rig.model.module.state_dict().items()}
    delta_of(rig, EAGER, 0, 1)
    assert all(torch.equal(value, before[name]) for name, value in rig.model.module.state_dict().items())
    assert not any(value.requires_grad for value in rig.model.module.parameters())
    assert rig.ledger.edit_ids == ()


def test_no_weight_moves_further_than_the_bound(rig: Rig) -> None:
    bound = 3e-3
    delta = delta_of(rig, FineTuning(learning_rate=0.02, num_steps=10, bound=bound), 0, 1)
    largest = max(float((left @ right).abs().max()) for left, right in delta.factors.values())
    assert largest == pytest.approx(bound)


def test_it_stops_as_soon_as_every_target_is_probable_enough(rig: Rig) -> None:
    editor = FineTuningEditor(EAGER)
    result = editor.edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits_of(0)))
    assert 0 < result.num_passes < EAGER.num_steps
    rig.weights.apply(result.delta)
    again = editor.edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits_of(0)))
    assert again.num_passes == 0
    assert all(norm == 0 for norm in again.delta.norms.values())


def test_it_cannot_take_an_edit_out_and_needs_one_to_make(rig: Rig) -> None:
    with pytest.raises(InvalidInput, match="recursive"):
        FineTuningEditor(EAGER).edit(
            EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits_of(0), removed_ids=("old",))
        )
    with pytest.raises(EditorFailed, match="none"):
        FineTuningEditor(EAGER).edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger))


def test_a_model_that_gives_no_probability_is_no_success(rig: Rig) -> None:
    with torch.no_grad():
        rig.model.module.get_parameter(rig.model.inner_param_names[0]).fill_(float("nan"))
    with pytest.raises(EditorFailed, match="finite"):
        delta_of(rig, EAGER, 0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", (-1.0, math.nan, math.inf)),
        ("num_steps", (0, -1)),
        ("minibatch", (-1,)),
        ("stop_at", (0.0, 2.0, math.nan)),
        ("bound", (-1.0, math.nan)),
    ],
)
def test_a_constant_out_of_its_range_is_named(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        changed: Any = {name: value}
        with pytest.raises(Misconfigured, match=f"expected {name} of fine-tuning: .*, got {value}"):
            FineTuning(**changed)
