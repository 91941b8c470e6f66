"""What an evaluation asks of edits, on a tiny model, held against plain forwards of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.evaluation.probes import MOST_REPHRASES, EditProbes
from editors.models.families import CausalModel, EditableModel
from editors.weights.deltas import PlainWeights, WeightDelta
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.wordings import Wording
from tests.support.factories import make_edit
from tests.support.ledger_parts import FACTS, Rig, make_rig
from tests.support.tiny_models import TEXT


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return make_rig(tmp_path)


def asked_edits() -> list[Edit]:
    """Edits with everything that can be asked."""
    return [
        make_edit(
            f"fact-{i}",
            prompt=prompt,
            target_new=target,
            target_true="Tokyo",
            rephrases=(f"{prompt} of", f"and {prompt}", f"the {prompt}"),
            locality=(Probe(prompt="river in", target="Spain"), Probe(prompt=f"city {i} was")),
            portability=(Probe(prompt=f"{prompt} is", target="Rome"),),
        )
        for i, (prompt, target) in enumerate(FACTS)
    ]


def log_probabilities(model: EditableModel, prompt: str, target: str) -> tuple[Tensor, Tensor]:
    """Of each target token, by a plain forward; and whether each is the argmax."""
    pair = model.encode_pair(prompt, target)
    ids = torch.tensor([[*pair.prompt_ids, *pair.target_ids]])
    with torch.no_grad():
        log_LV = model.module(input_ids=ids).logits[0].log_softmax(dim=-1)
    log_TV = log_LV[len(pair.prompt_ids) - 1 : -1]
    target_T = torch.tensor(pair.target_ids)
    return log_TV.gather(1, target_T[:, None])[:, 0], log_TV.argmax(dim=1) == target_T


def change(model: EditableModel, weights: PlainWeights, *, seed: int = 3, size: float = 0.2) -> None:
    """Edit the model at random; much, unless told otherwise."""
    draw = torch.Generator().manual_seed(seed)
    factors = {
        param.name: (
            torch.randn(param.in_features, 2, generator=draw) * size,
            torch.randn(2, param.out_features, generator=draw),
        )
        for param in model.inner
    }
    weights.apply(WeightDelta.of(factors))


def everything(probes: EditProbes, edits: Sequence[Edit]) -> list[Any]:
    ids = {edit.edit_id for edit in edits}
    return [*probes.ask(edits, preferring=ids, free=ids), probes.drawdown(), probes.fluency_of(edits)]


def test_the_base_is_unchanged_and_its_perplexity_is_its_own(rig: Rig) -> None:
    edits = asked_edits()
    probes = EditProbes(rig.model, edits, TEXT)
    assert probes.drawdown() == pytest.approx(0.0, abs=1e-6)
    assert probes.fluency_of(probes.continued) == probes.fluency
    for figures in probes.ask(edits):
        assert all(neighbour.from_base.is_unchanged for neighbour in figures.neighbours)
        assert all(neighbour.from_base.kl == pytest.approx(0.0, abs=1e-5) for neighbour in figures.neighbours)


def test_another_model_of_the_base_is_compared_with_what_the_base_has_said(rig: Rig) -> None:
    edits = asked_edits()
    probes = EditProbes(rig.model, edits, TEXT)
    model = CausalModel(rig.model.module, rig.model.tokenizer, rig.model.inner_param_names[-1:])
    change(model, PlainWeights(model.module, model.inner))
    found, expected = everything(probes.of(model), edits), everything(probes, edits)
    assert [one.own.score.hits for one in found[:-2]] == [one.own.score.hits for one in expected[:-2]]
    kls = [[near.from_base.kl for one in part[:-2] for near in one.neighbours] for part in (found, expected)]
    assert kls[0] == pytest.approx(kls[1], rel=1e-3)
    assert max(kls[0]) > 0
    assert found[-2:] == pytest.approx(expected[-2:], rel=1e-4)


def test_success_and_preference_are_those_of_a_plain_forward(rig: Rig) -> None:
    edits = asked_edits()
    probes = EditProbes(rig.model, edits, TEXT)
    change(rig.model, rig.weights)
    ids = {edit.edit_id for edit in edits}
    for edit, figures in zip(edits, probes.ask(edits, preferring=ids), strict=True):
        request = edit.request
        asks = [(request.prompt, figures.own), *zip(request.rephrases, figures.rephrases, strict=True)]
        for prompt, asked in asks:
            new_T, hit_T = log_probabilities(rig.model, prompt, request.target_new)
            true_T, _ = log_probabilities(rig.model, prompt, "Tokyo")
            assert asked.score.is_hit == bool(hit_T.all())
            assert asked.score.token_fraction == pytest.approx(float(hit_T.float().mean()))
            assert asked.prefers_new == bool(new_T.mean() > true_T.mean())
        [consequence] = figures.portability
        assert consequence.score.is_hit == bool(log_probabilities(rig.model, f"{request.prompt} is", "Rome")[1].all())
        assert consequence.prefers_new is None
        given, free = figures.neighbours
        true_T, _ = log_probabilities(rig.model, "river in", "Spain")
        new_T, _ = log_probabilities(rig.model, "river in", request.target_new)
        assert given.prefers_true == bool(true_T.mean() > new_T.mean())
        assert free.prefers_true is None


def test_locality_is_measured_along_the_answer_of_the_base(rig: Rig) -> None:
    edits = asked_edits()
    model = rig.model
    prompts = [model.encode_prompt(probe.prompt) for edit in edits for probe in edit.request.locality]
    lengths = [1, 8] * len(edits)
    answers = [
        model.greedy([ids], max_new_tokens=length)[0] or [min(model.stop_ids)]
        for ids, length in zip(prompts, lengths, strict=True)
    ]
    sequences = [torch.tensor([[*ids, *answer]]) for ids, answer in zip(prompts, answers, strict=True)]
    with torch.no_grad():
        before = [model.module(input_ids=ids).logits[0].log_softmax(dim=-1) for ids in sequences]
    probes = EditProbes(model, edits, TEXT)
    change(model, rig.weights)
    found = [neighbour for figures in probes.ask(edits) for neighbour in figures.neighbours]
    for neighbour, ids, was_LV, prompt in zip(found, sequences, before, prompts, strict=True):
        with torch.no_grad():
            now_LV = model.module(input_ids=ids).logits[0].log_softmax(dim=-1)
        was_TV, now_TV = was_LV[len(prompt) - 1 : -1], now_LV[len(prompt) - 1 : -1]
        assert neighbour.from_base.is_unchanged == bool((was_TV.argmax(dim=1) == now_TV.argmax(dim=1)).all())
        kl = float((was_TV.exp() * (was_TV - now_TV)).sum(dim=1).mean())
        assert neighbour.from_base.kl == pytest.approx(kl, rel=1e-3, abs=1e-5)
    assert not all(neighbour.from_base.is_unchanged for neighbour in found)


def test_free_answers_are_asked_of_whom_they_are_asked_for(rig: Rig) -> None:
    edits = asked_edits()
    probes = EditProbes(rig.model, edits, TEXT)
    first, second = probes.ask(edits[:2], free={edits[1].edit_id})
    assert first.own.free is None
    for asked in (second.own, second.rephrases[0], second.portability[0]):
        assert asked.free is not None
        assert asked.free.is_success in (True, False)
        assert asked.free.is_success_in_chat is None  # the tiny tokenizer has no chat template


def test_two_measurements_have_the_same_figures_bit_for_bit(tmp_path: Path) -> None:
    edits = asked_edits()
    found = []
    for name in ("one", "two"):
        rig = make_rig(tmp_path / name)
        probes = EditProbes(rig.model, edits, TEXT)
        change(rig.model, rig.weights)
        found.append(everything(probes, edits))
    assert found[0] == found[1]


def test_measuring_leaves_every_parameter_as_it_was(rig: Rig) -> None:
    edits = asked_edits()
    before = {name: value.clone() for name, value in rig.model.module.state_dict().items()}
    everything(EditProbes(rig.model, edits, TEXT), edits)
    assert all(torch.equal(value, before[name]) for name, value in rig.model.module.state_dict().items())


def test_more_damage_shows_in_every_figure_of_damage(rig: Rig) -> None:
    edits = asked_edits()
    probes = EditProbes(rig.model, edits, TEXT)
    change(rig.model, rig.weights, size=0.02)
    little = [neighbour.from_base.kl for figures in probes.ask(edits) for neighbour in figures.neighbours]
    for seed in range(4, 9):
        change(rig.model, rig.weights, seed=seed, size=0.02)
    much = [neighbour.from_base.kl for figures in probes.ask(edits) for neighbour in figures.neighbours]
    assert sum(much) > 2 * sum(little) > 0


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3])
def test_what_may_be_an_edit_row_is_not_asked(num_rows: int, rig: Rig) -> None:
    edits = asked_edits()
    probes = EditProbes(rig.model, edits, TEXT, num_rows=num_rows)
    asked = probes.ask(edits)
    assert {len(figures.rephrases) for figures in asked} == {max(1, 3 - num_rows)}
    assert {len(figures.row_rephrases) for figures in asked} == {min(2, num_rows)}


def test_a_probe_that_says_the_prompt_again_is_not_asked(rig: Rig) -> None:
    [edit, *_] = asked_edits()
    request = replace(edit.request, rephrases=(edit.request.prompt.upper(),))
    edit = replace(edit, request=request)
    [figures] = EditProbes(rig.model, [edit], TEXT).ask([edit])
    assert figures.rephrases == ()


def test_so_many_rephrases_of_each_class_are_asked_and_the_first_of_each(rig: Rig) -> None:
    [edit, *_] = asked_edits()
    prompt = "who is king of Japan"
    texts = (f"{prompt} a", "Japan is", f"{prompt} and", "the queen", f"{prompt} of", "in Japan", "a king", "what is")
    edit = replace(edit, request=replace(edit.request, prompt=prompt, subject="Japan", rephrases=texts))
    for most, expected in ((MOST_REPHRASES, (2, 2, 3)), (dict.fromkeys(Wording, 1), (1, 1, 1))):
        [found] = EditProbes(rig.model, [edit], TEXT, most_rephrases=most).ask([edit])
        assert (len(found.same_context), len(found.other_context), len(found.unnamed)) == expected
    assert found.own.score != found.same_context[0].score
    assert found.same_context[0].score.is_hit == bool(log_probabilities(rig.model, texts[0], "Kyoto")[1].all())


def test_what_is_asked_stands_as_it_was_given_at_first(rig: Rig) -> None:
    [edit, *_] = asked_edits()
    without = replace(edit, request=replace(edit.request, rephrases=()))
    probes = EditProbes(rig.model, [edit], TEXT)
    assert probes.ask([without]) == probes.ask([edit])
