"""The natural gradient of a row: K-FAC's output side, measured with labels that the model itself gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editors.data.datasets import prior_lines as prior_lines_of
from editors.data.datasets import prior_subjects
from editors.models.hooks import capturing
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.prior import SUBJECT_SHARE, Prior, measure_prior
from pipeline.domain.errors import EditorFailed, Misconfigured
from tests.support.ledger_parts import prior_lines
from tests.support.tiny_families import tiny_model

NAME = "layer.weight"


@pytest.fixture
def moment_OO() -> torch.Tensor:
    rows_NO = torch.randn(40, 6, generator=torch.Generator().manual_seed(3)) * torch.tensor([9.0, 4, 2, 1, 0.5, 0.1])
    return rows_NO.T @ rows_NO / len(rows_NO)


def prior_of(moment_OO: torch.Tensor) -> Prior:
    return Prior(moments={}, gradient_moments={NAME: moment_OO}, num_tokens=40)


def gradients() -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(4))


def test_it_is_the_gradient_times_the_inverse_of_the_damped_moments(moment_OO: torch.Tensor) -> None:
    damped_OO = moment_OO.double() + 0.1 * moment_OO.diagonal().double().mean() * torch.eye(6).double()
    expected_TO = gradients().double() @ torch.linalg.inv(damped_OO)
    torch.testing.assert_close(NaturalGradient(prior_of(moment_OO), 0.1)(NAME, gradients()), expected_TO.float())


def test_without_damping_it_is_the_gradient_and_with_much_it_points_there(moment_OO: torch.Tensor) -> None:
    plain_TO = gradients()
    assert NaturalGradient(prior_of(moment_OO), 0.0)(NAME, plain_TO) is plain_TO
    much_TO = NaturalGradient(prior_of(moment_OO), 1e6)(NAME, plain_TO)
    torch.testing.assert_close(
        torch.nn.functional.normalize(much_TO), torch.nn.functional.normalize(plain_TO), atol=1e-4, rtol=0
    )


def test_it_goes_down_the_loss_and_moves_what_the_text_needs_less(moment_OO: torch.Tensor) -> None:
    plain_TO = gradients()
    natural_TO = NaturalGradient(prior_of(moment_OO), 0.02)(NAME, plain_TO)
    assert bool(((natural_TO * plain_TO).sum(dim=1) > 0).all())

    def harm_for_gain(step_TO: torch.Tensor) -> torch.Tensor:
        gain_T = (step_TO * plain_TO).sum(dim=1)
        return ((step_TO @ moment_OO) * step_TO).sum(dim=1) / gain_T.square()

    assert bool((harm_for_gain(natural_TO) < harm_for_gain(plain_TO)).all())


def test_the_scale_of_the_text_gradients_changes_no_direction(moment_OO: torch.Tensor) -> None:
    one_TO = NaturalGradient(prior_of(moment_OO), 0.02)(NAME, gradients())
    other_TO = NaturalGradient(prior_of(1000 * moment_OO), 0.02)(NAME, gradients())
    torch.testing.assert_close(1000 * other_TO, one_TO)


def test_what_cannot_be_used_is_refused(moment_OO: torch.Tensor) -> None:
    with pytest.raises(Misconfigured, match="gradients of other"):
        NaturalGradient(prior_of(moment_OO), 0.02)("other", gradients())
    for damping in (-1.0, float("nan"), float("inf")):
        with pytest.raises(Misconfigured, match="damping"):
            NaturalGradient(prior_of(moment_OO), damping)
    with pytest.raises(EditorFailed, match="finite"):
        NaturalGradient(prior_of(moment_OO * float("nan")), 0.02)(NAME, gradients())


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart", "bert"])
def test_the_moments_of_every_family_are_positive_and_the_same_again(name: str) -> None:
    model = tiny_model(name)
    first, second = (measure_prior(model, prior_lines()) for _ in range(2))
    assert set(first.gradient_moments) == set(model.inner_param_names)
    for param in model.inner:
        moment_OO = first.gradient_moments[param.name]
        assert moment_OO.shape == (param.out_features, param.out_features)
        assert torch.equal(moment_OO, second.gradient_moments[param.name])
        assert float(moment_OO.diagonal().min()) >= 0 < float(moment_OO.diagonal().sum())
        assert not model.module.get_parameter(param.name).requires_grad


def test_moments_equal_those_of_autograd_at_the_outputs() -> None:
    model = tiny_model("llama")
    param = model.inner[-1]
    line = prior_lines()[0]
    found_OO = measure_prior(model, [line]).gradient_moments[param.name].double()
    outputs: list[torch.Tensor] = []

    def keep(_layer: object, _given: object, out_BLO: torch.Tensor) -> torch.Tensor:
        outputs.append(out_BLO.requires_grad_())
        return outputs[0]

    batch = model.pack([model.encode_text(line, max_tokens=24)])
    handle = model.module.get_submodule(param.module_name).register_forward_hook(keep)
    logits_NV = model.target_logits(batch)
    handle.remove()
    draw = torch.Generator().manual_seed(0)
    label_N = torch.multinomial(logits_NV.detach().softmax(dim=1), 1, generator=draw)[:, 0]
    (delta_BLO,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits_NV, label_N, reduction="sum"), outputs)
    expected_OO = (delta_BLO[0].T @ delta_BLO[0]).double() / len(label_N)
    assert float((found_OO - expected_OO).norm()) < 1e-5 * float(expected_OO.norm())


def test_a_prior_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    prior = measure_prior(tiny_model("llama"), prior_lines())
    digest = prior.save(tmp_path / "prior.safetensors")
    again = Prior.load(tmp_path / "prior.safetensors", digest)
    assert replace(again, moments={}, gradient_moments={}) == replace(prior, moments={}, gradient_moments={})
    for held, read in ((prior.moments, again.moments), (prior.gradient_moments, again.gradient_moments)):
        assert held.keys() == read.keys()
        assert all(torch.equal(held[name], read[name]) for name in held)


def test_texts_count_alike_however_long_they_are() -> None:
    model = tiny_model("llama")
    one, other = prior_lines()[:1], prior_lines()[1:]
    both = measure_prior(model, one, other)
    parts = [measure_prior(model, lines) for lines in (one, other)]
    for name in model.inner_param_names:
        for kind in ("moments", "gradient_moments"):
            expected = (getattr(parts[0], kind)[name] + getattr(parts[1], kind)[name]) / 2
            torch.testing.assert_close(getattr(both, kind)[name], expected)
    assert both.num_tokens == sum(part.num_tokens for part in parts)


def test_a_text_is_read_up_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    whole = measure_prior(model, prior_lines())
    first = measure_prior(model, prior_lines()[:1])
    monkeypatch.setattr("editors.solve.prior.NUM_TOKENS", 1)
    short = measure_prior(model, prior_lines())
    assert short.num_tokens == first.num_tokens < whole.num_tokens
    for texts in ((), ([" "],), (prior_lines(), [])):
        with pytest.raises(Misconfigured, match="at least one line"):
            measure_prior(model, *texts)


def test_a_file_of_edits_gives_prompts_and_neighbours_and_nothing_that_it_corrects(tmp_path: Path) -> None:
    line = {"prompt": "Rome is in", "target_new": "Japan", "target_true": "Italy", "subject": "Rome"}
    near = {"locality_prompt": "Milan is in", "locality_answer": "Italy"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(line | near) + "\n")
    (tmp_path / "text.txt").write_text("One line.\nAnother.\n")
    assert prior_lines_of(tmp_path / "edits.jsonl") == ["Rome is in", "Milan is in Italy"]
    assert prior_lines_of(tmp_path / "text.txt") == ["One line.", "Another."]
    files = [tmp_path / "text.txt", tmp_path / "edits.jsonl"]
    assert prior_subjects(files) == [("Rome is in", "Rome")]


def test_subjects_have_a_share_of_their_own_whatever_follows_them() -> None:
    model = tiny_model("llama")
    of_text = measure_prior(model, prior_lines())
    prompts = [("the capital of Japan is", "Japan"), ("the capital of Spain is", "Spain"), ("the capital", "nowhere")]
    found = measure_prior(model, prior_lines(), subjects=[*prompts, ("the capital of Japan", "Japan")])
    param = model.inner[-1]
    batch = model.pack([model.encode_pair(prompt, "Rome", subject) for prompt, subject in prompts[:2]])
    with capturing(model.module, {param.name: batch.keys("subject")}) as seen, torch.no_grad():
        model.run_to_last_inner(batch)
    u_TI = seen.u_TI[param.name]
    assert len(u_TI) == 2
    expected_II = (1 - SUBJECT_SHARE) * of_text.moments[param.name] + SUBJECT_SHARE * u_TI.T @ u_TI / 2
    torch.testing.assert_close(found.moments[param.name], expected_II)
    assert found.num_tokens == of_text.num_tokens + 2
    for name, moment_OO in of_text.gradient_moments.items():
        assert torch.equal(moment_OO, found.gradient_moments[name])


@pytest.mark.parametrize("subjects", [[], [("the capital of Japan is", "Spain")], [("the capital of Japan is", "")]])
def test_without_a_subject_that_its_prompt_names_the_prior_is_that_of_the_texts(
    subjects: list[tuple[str, str]],
) -> None:
    model = tiny_model("llama")
    of_text, found = measure_prior(model, prior_lines()), measure_prior(model, prior_lines(), subjects=subjects)
    assert all(torch.equal(moment_II, found.moments[name]) for name, moment_II in of_text.moments.items())


def test_a_model_whose_rows_are_never_subjects_alone_reads_none() -> None:
    model = tiny_model("t5")
    subjects = [("the capital of Japan is", "Japan")]
    of_text, found = measure_prior(model, prior_lines()), measure_prior(model, prior_lines(), subjects=subjects)
    assert all(torch.equal(moment_II, found.moments[name]) for name, moment_II in of_text.moments.items())
