"""What is measured of a model that is no causal language model: figures at large, answers, priors, gates."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.measure.free_answers import FreeAnswer, free_answers
from editors.measure.quality import Figure, quality_probes
from editors.measure.reference import Reference, build_reference
from editors.measure.rounds import answered
from editors.measure.scorer import Scorer
from editors.models.families import EditableModel
from editors.models.hooks import capturing
from editors.prepare.__main__ import Inputs, prepare
from editors.solve.prior import Prior, measure_prior
from editors.weights.deltas import PlainWeights, WeightDelta
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.domain.gates import GatePolicy, Verdict
from pipeline.domain.judging import judge
from pipeline.domain.measurements import Measurements
from pipeline.domain.rank_api import SuiteProbe
from tests.support.factories import make_edit
from tests.support.ledger_parts import prior_lines
from tests.support.tiny_families import ARCHITECTURES, tiny_model, tiny_module
from tests.support.tiny_models import TEXT

OTHERS = ["t5", "bart", "bert"]
PROMPTS = ("the capital of Spain is", "Berlin is a city in", "where was the queen", "who is king of Rome")


@pytest.fixture(params=OTHERS)
def model(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param)


def targets_of(model: EditableModel) -> tuple[str, ...]:
    return (
        ("true", "false", "true", "unknown") if model.task == "classifier" else ("Madrid", "Germany", "born", "Paris")
    )


def suite_of(model: EditableModel) -> list[SuiteProbe]:
    return [
        SuiteProbe(probe=Probe(prompt=prompt, target=target), subject=prompt.split()[-1], relation="r")
        for prompt, target in zip(PROMPTS, targets_of(model), strict=True)
    ]


def edit_of(model: EditableModel, **changes: Any) -> Edit:
    fields = {
        "prompt": "the president of France was",
        "target_new": "true" if model.task == "classifier" else "Lyon",
        "rephrases": ("who was president in France",),
        "locality": (Probe(prompt="the river of Paris is"),),
    }
    return make_edit("one", **(fields | changes))


def shifted(model: EditableModel, size: float) -> WeightDelta:
    torch.manual_seed(0)
    return WeightDelta.of(
        {p.name: (torch.ones(p.in_features, 1), torch.randn(1, p.out_features) * size) for p in model.inner}
    )


def measured(model: EditableModel, size: float, edits: list[Edit], gone_keys: tuple[str, ...] = ()) -> Measurements:
    reference = build_reference(model, suite_of(model), "")
    weights = PlainWeights(model.module, model.inner)
    scorer = Scorer(model, weights, reference)
    scorer.observe_parent(edits, [])
    delta = shifted(model, size)
    weights.apply(delta)
    return scorer.measure(added=edits, retained=[], gone_keys=gone_keys, delta=delta)


def test_perplexity_of_a_seq2seq_model_is_that_of_the_suites_targets() -> None:
    model = tiny_model("bart")
    reference = build_reference(model, suite_of(model), "this text is not read")
    module: Any = model.module
    losses = []
    for prompt, target in zip(PROMPTS, targets_of(model), strict=True):
        ids, labels = (torch.tensor([model.tokenizer(text)["input_ids"]]) for text in (prompt, target))
        rows = module(input_ids=ids, labels=labels).logits[0].log_softmax(1)
        losses += (-rows[range(1, labels.shape[1]), labels[0, 1:]]).tolist()  # the first is what labels begin with
    assert reference.figure.accuracy is None
    assert reference.figure.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_accuracy_of_a_classifier_is_the_share_of_the_suite_that_it_gets_right() -> None:
    model = tiny_model("bert")
    reference = build_reference(model, suite_of(model), "")
    right = [answer == target for answer, target in zip(model.generate(PROMPTS), targets_of(model), strict=True)]
    assert reference.figure == Figure(accuracy=sum(right) / 4)


def test_drawdown_is_what_was_lost_since_the_base() -> None:
    assert Figure(perplexity=22.0).drawdown(Figure(perplexity=20.0)) == pytest.approx(0.1)
    assert Figure(accuracy=0.7).drawdown(Figure(accuracy=0.9)) == pytest.approx(0.2)
    assert Figure().drawdown(Figure(accuracy=0.9)) is None


def test_a_perplexity_that_overflows_is_infinite() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.module.get_parameter("lm_head.weight").mul_(1e5)
    assert build_reference(model, (), TEXT).figure.perplexity == math.inf


def test_a_suite_without_targets_is_refused_where_it_is_what_drawdown_is_measured_on(model: EditableModel) -> None:
    with pytest.raises(Misconfigured, match="suite with targets"):
        quality_probes(model, [Probe(prompt="Berlin is")], TEXT, num_windows=4)


def test_a_suite_with_a_label_that_does_not_exist_is_refused() -> None:
    model = tiny_model("bert")
    with pytest.raises(InvalidInput, match="false, true, unknown"):
        quality_probes(model, [Probe(prompt="Berlin is", target="Germany")], "", num_windows=4)


def test_a_reference_of_any_family_comes_back_as_it_was(model: EditableModel, tmp_path: Path) -> None:
    reference = build_reference(model, suite_of(model), "")
    digest = reference.save(tmp_path / "1")
    again = Reference.load(tmp_path / "1", digest)
    assert (again.quality_probes, again.scores, again.figure) == (
        reference.quality_probes,
        reference.scores,
        reference.figure,
    )
    assert again.save(tmp_path / "2") == digest


def test_nothing_is_lost_before_an_edit_and_the_gates_say_so(model: EditableModel) -> None:
    found = measured(model, 0.0, [])
    assert found.candidate.suite_unchanged == 1.0
    assert (found.candidate.perplexity, found.candidate.accuracy) == (found.base.perplexity, found.base.accuracy)
    report = judge(GatePolicy(), found)
    assert report.passed
    rows = {row.metric: row.verdict for row in report.rows}
    is_classifier = model.task == "classifier"
    assert rows["perplexity"] is (Verdict.not_measured if is_classifier else Verdict.passed)
    assert ("accuracy" in rows) is is_classifier


def test_a_trial_fills_every_figure_of_an_edit(model: EditableModel) -> None:
    found = measured(model, 0.5, [edit_of(model)])
    [score] = found.edits
    assert len(score.rephrases) == len(score.locality) == len(score.locality_base) == 1
    assert score.locality_kl is not None
    assert score.locality_kl >= 0
    assert score.free_success is not None
    assert score.chat_success is None
    assert found.kl_from_parent is not None
    assert found.kl_from_parent > 0


def test_what_a_classifier_says_freely_is_its_most_probable_label() -> None:
    model = tiny_model("bert")
    [label] = model.generate(["the president of France was"])
    others = {"true", "false", "unknown"} - {label}
    prompt = "the president of France was"
    for target, is_success in ((label, True), (min(others), False)):
        found, _ = answered(model, free_answers(model, [(prompt, target)]))
        assert found == [FreeAnswer(text=label, is_success=is_success)]


def test_suite_probes_of_edited_facts_count_neither_for_nor_against_a_model() -> None:
    model = tiny_model("bert")
    reference = build_reference(model, suite_of(model), "")
    edit = edit_of(model, subject="Rome", relation="r")  # the fact of the suite's last probe
    found = measured(model, 0.0, [edit])
    kept = [score.is_hit for score in reference.scores[:3]]
    assert found.candidate.num_suite_left_out == 1
    assert found.base.accuracy == found.candidate.accuracy == sum(kept) / 3


def test_a_prior_is_the_mean_over_every_token_that_a_layer_sees(model: EditableModel) -> None:
    lines = prior_lines()
    prior = measure_prior(model, lines)
    assert set(prior.moments) == set(model.inner_param_names)
    batch = model.pack([model.encode_text(line, max_tokens=24) for line in lines])
    for param in model.inner:
        places = {param.name: model.key_positions(batch, param, "answer")}
        with torch.no_grad(), capturing(model.module, places) as seen:
            model.target_logits(batch)
        u_TI = seen.u_TI[param.name].double()
        torch.testing.assert_close(prior.moments[param.name].double(), u_TI.T @ u_TI / len(u_TI), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_a_base_of_any_task_is_prepared(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    module, tokenizer = tiny_module(name)
    module.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = tiny_model(name)
    suite = [json.dumps({"prompt": item.probe.prompt, "target": item.probe.target}) for item in suite_of(model)]
    (tmp_path / "suite.jsonl").write_text("\n".join(suite))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "prior.txt").write_text("\n".join(prior_lines()))
    inputs = Inputs(
        model=tmp_path / "base",
        suite=tmp_path / "suite.jsonl",
        text=tmp_path / "text.txt",
        prior_text=(tmp_path / "prior.txt",),
        task=ARCHITECTURES[name].task,
    )
    lineage = prepare(inputs, tmp_path / "out")
    assert lineage["task"] == model.task
    assert tuple(lineage["inner_params"]) == ARCHITECTURES[name].expected
    assert (lineage["accuracy"] is None) == (model.task != "classifier") == (lineage["perplexity"] is not None)
    assert set(Prior.load(tmp_path / "out" / "prior.safetensors").moments) == set(lineage["inner_params"])
    assert inputs.key("d") != replace(inputs, task="causal").key("d")
