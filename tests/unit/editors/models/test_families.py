"""Models of every architecture behind one face: what is edited, how it lies, what is fed and what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editors.models.families import EditableModel, InnerParam, editable, family_of
from editors.models.hooks import capturing, side_branch
from editors.models.inner_params import REGISTRY
from editors.models.tokens import TargetBatch
from editors.weights.deltas import PlainWeights, WeightDelta
from editors.weights.loading import load_base
from pipeline.domain.errors import InvalidInput, Misconfigured
from tests.support.tiny_families import ARCHITECTURES, LABELS, pairs_of, tiny_model, tiny_module

NAMES = sorted(ARCHITECTURES)
ENCODERS = [name for name in NAMES if ARCHITECTURES[name].task != "causal"]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param)


def every_position(model: EditableModel, batch: TargetBatch, param: InnerParam) -> tuple[Tensor, Tensor]:
    """Rows and positions of all that goes through an inner layer, padding and all."""
    shapes: list[tuple[int, ...]] = []
    layer = model.module.get_submodule(param.module_name)
    handle = layer.register_forward_hook(lambda _layer, _arguments, out: shapes.append(tuple(out.shape)))
    model.target_logits(batch)
    handle.remove()
    row_T, position_T = torch.ones(shapes[0][:2]).nonzero().unbind(dim=1)
    return row_T, position_T


def loss_of(model: EditableModel, batch: TargetBatch) -> Tensor:
    return nn.functional.cross_entropy(model.target_logits(batch), batch.target_N, reduction="sum")


def captured(model: EditableModel, batch: TargetBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """u and delta of every inner layer at every position."""
    places = {param.name: every_position(model, batch, param) for param in model.inner}
    with capturing(model.module, places) as seen:
        deltas = seen.deltas(loss_of(model, batch))
    return {name: (seen.u_TI[name], delta) for name, delta in deltas.items()}


def test_every_known_model_type_is_tested() -> None:
    assert {made.model_type for made in ARCHITECTURES.values()} == set(REGISTRY)


def test_inner_params_are_found_in_the_order_in_which_they_run(model: EditableModel) -> None:
    kinds = {made.expected for made in ARCHITECTURES.values() if made.task == model.task}
    assert model.inner_param_names in kinds
    again = editable(model.task, model.module, model.tokenizer, model.inner_param_names[::-1])
    assert again.inner == model.inner


@pytest.mark.parametrize("name", NAMES)
def test_inner_params_are_those_of_the_architecture(name: str) -> None:
    assert tiny_model(name).inner_param_names == ARCHITECTURES[name].expected


@pytest.mark.parametrize(
    "name", ["encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "decoder.block.2.layer.2.DenseReluDense.wi_1.weight"]
)
def test_any_linear_layer_of_a_block_can_be_chosen(name: str) -> None:
    assert tiny_model("t5_gated", inner_params=(name,)).inner_param_names == (name,)


def test_rank_one_sums_equal_the_weight_gradient(model: EditableModel) -> None:
    batch = model.encode(pairs_of(model))
    found = captured(model, batch)
    weights = [model.module.get_parameter(name).requires_grad_(True) for name in found]
    expected = dict(zip(found, torch.autograd.grad(loss_of(model, batch), weights), strict=True))
    for param in model.inner:
        u_TI, delta_TO = found[param.name]
        gradient_IO = u_TI.T @ delta_TO
        lying = gradient_IO if param.fan_in_fan_out else gradient_IO.T
        assert expected[param.name].abs().max() > 1e-6
        torch.testing.assert_close(lying, expected[param.name], rtol=1e-3, atol=1e-6)


def test_a_step_against_the_gradient_lowers_the_loss(model: EditableModel) -> None:
    batch = model.encode(pairs_of(model))
    steps = {name: (u_TI.T, -1e-3 * delta_TO) for name, (u_TI, delta_TO) in captured(model, batch).items()}
    before = loss_of(model, batch)
    with side_branch(model.module, steps):
        after = loss_of(model, batch)
    assert after < before


def test_a_side_branch_gives_what_written_weights_give(model: EditableModel) -> None:
    torch.manual_seed(3)
    batch = model.encode(pairs_of(model))
    factors = {p.name: (torch.randn(p.in_features, 2), torch.randn(2, p.out_features) * 0.1) for p in model.inner}
    assert all(param.in_features == param.out_features for param in model.inner)
    before = model.target_logits(batch)
    with side_branch(model.module, factors):
        beside = model.target_logits(batch)
    PlainWeights(model.module, model.inner).apply(WeightDelta.of(factors))
    written = model.target_logits(batch)
    assert not torch.allclose(before, written, atol=1e-3)
    torch.testing.assert_close(beside, written, rtol=1e-4, atol=1e-5)


def test_padding_changes_no_logit(model: EditableModel) -> None:
    pairs = pairs_of(model)
    together = model.encode(pairs)
    alone = torch.cat([model.target_logits(model.encode([pair])) for pair in pairs])
    torch.testing.assert_close(model.target_logits(together), alone, rtol=1e-4, atol=1e-5)


def test_logits_are_bitwise_repeatable_and_a_prefix_changes_none(model: EditableModel) -> None:
    batch = model.encode(pairs_of(model))
    first = model.target_logits(batch)
    assert torch.equal(model.target_logits(batch), first)
    torch.testing.assert_close(model.target_logits(model.prefixed(batch)), first, rtol=1e-5, atol=1e-6)


def test_a_target_comes_back_as_it_was(model: EditableModel) -> None:
    for prompt, target in pairs_of(model):
        pair = model.encode_pair(prompt, target)
        assert model.decode(pair.target_ids).strip() == target
        batch = model.pack([pair])
        assert batch.target_N.tolist() == list(pair.target_ids)


def test_an_answer_of_its_own_is_what_the_model_finds_most_probable(model: EditableModel) -> None:
    prompts = [model.encode_prompt(prompt) for prompt, _ in pairs_of(model)]
    answers = model.greedy(prompts, max_new_tokens=5)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert model.greedy([prompt], max_new_tokens=5) == [answer]
        is_over = len(answer) < 5 and model.task != "classifier"
        said = (*answer, min(model.stop_ids)) if is_over else tuple(answer)
        pair = model.encode_pair("the king", "true" if model.task == "classifier" else "king")
        batch = model.pack([type(pair)(prompt_ids=prompt, target_ids=said)])
        assert model.target_logits(batch).argmax(dim=1).tolist() == list(said)


@pytest.mark.parametrize("name", ["t5", "t5_gated", "bart"])
def test_greedy_answers_are_those_of_transformers(name: str) -> None:
    model = tiny_model(name)
    module: Any = model.module
    for prompt, _ in pairs_of(model):
        ids = torch.tensor([model.encode_prompt(prompt)])
        batch = model.encode([(prompt, "king")])
        assert batch.decoder_ids_BM is not None
        given = batch.decoder_ids_BM[:, : int(batch.position_N[0]) + 1]
        said = module.generate(ids, decoder_input_ids=given, do_sample=False, num_beams=1, max_new_tokens=5)
        rest = [token for token in said[0, given.shape[1] :].tolist() if token not in model.stop_ids]
        assert model.greedy([model.encode_prompt(prompt)], max_new_tokens=5) == [rest]


def test_an_answer_ends_where_it_is_said_to_be_done() -> None:
    model = tiny_model("t5", seed=4)
    prompts = [model.encode_prompt(prompt) for prompt, _ in pairs_of(model)]
    whole = model.greedy(prompts, max_new_tokens=4)
    cut = model.greedy(prompts, max_new_tokens=4, is_done=lambda place, tokens: len(tokens) > place)
    assert cut == [answer[: place + 1] for place, answer in enumerate(whole)]
    assert model.generate([prompt for prompt, _ in pairs_of(model)], max_new_tokens=0) == ["", "", ""]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_target_of_a_seq2seq_model_ends_with_its_end_token(name: str) -> None:
    model = tiny_model(name)
    pair = model.encode_pair("the capital of Japan is", "Tokyo")
    assert pair.target_ids[-1] == model.tokenizer.eos_token_id
    assert len(pair.target_ids) == 2
    labels = torch.tensor([model.tokenizer(text_target="Tokyo")["input_ids"]])
    batch = model.pack([pair])
    module: Any = model.module
    whole = module(input_ids=batch.input_ids_BL, labels=labels)
    logits = whole.logits[0, -2:]
    torch.testing.assert_close(model.target_logits(batch), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_keys_of_an_encoder_are_the_subjects_last_token_or_every_real_one(name: str) -> None:
    model = tiny_model(name)
    target = "true" if model.task == "classifier" else "Tokyo"
    known = model.encode_pair("the king of Spain is", target, "Spain")
    unknown = model.encode_pair("the president", target)
    batch = model.pack([unknown, known, known])
    row_T, position_T = model.key_positions(batch, model.inner[0], "answer")
    of_unknown = list(range(len(unknown.prompt_ids)))
    place = known.prompt_ids.index(model.tokenizer.convert_tokens_to_ids("Spain"))
    assert row_T.tolist() == [0] * len(of_unknown) + [1, 2]
    assert position_T.tolist() == [*of_unknown, place, place]


def test_keys_of_a_decoder_are_where_target_tokens_are_predicted() -> None:
    model = tiny_model("bart")
    batch = model.pack([model.encode_pair(prompt, target, "Japan") for prompt, target in pairs_of(model)])
    row_T, position_T = model.key_positions(batch, model.inner[-1], "subject")
    assert torch.equal(row_T, batch.row_N)
    assert torch.equal(position_T, batch.position_N)
    assert int(position_T.min()) == 1  # after what decoder and labels begin with


def test_text_gives_keys_in_every_inner_layer(model: EditableModel) -> None:
    lines = ["the capital of Japan is Tokyo and the king of Spain", "Rome"]
    batch = model.pack([model.encode_text(line, max_tokens=6) for line in lines])
    for param in model.inner:
        row_T, _ = model.key_positions(batch, param, "answer")
        assert set(row_T.tolist()) == {0, 1}
        assert 0 < len(row_T) <= 12


def test_what_is_no_label_is_refused_with_the_labels() -> None:
    model = tiny_model("bert")
    assert model.encode_pair("the king", "unknown").target_ids == (2,)
    with pytest.raises(InvalidInput, match="labels false, true, unknown as target"):
        model.encode_pair("the king", "maybe")


def test_a_classifier_says_the_names_of_its_labels() -> None:
    model = tiny_model("bert")
    batch = model.encode([(prompt, "true") for prompt, _ in pairs_of(model)])
    expected = [LABELS[place] for place in model.target_logits(batch).argmax(dim=1).tolist()]
    assert model.generate([prompt for prompt, _ in pairs_of(model)]) == expected


@pytest.mark.parametrize("name", ["bart", "bert"])
def test_a_prompt_that_an_encoder_cannot_take_is_refused(name: str) -> None:
    target = "true" if name == "bert" else "Tokyo"
    with pytest.raises(InvalidInput, match="at most 64 tokens"):
        tiny_model(name).encode_pair("king " * 70, target)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_target_without_a_word_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="at least one token"):
        tiny_model(name).encode_pair("the king", " ")


@pytest.mark.parametrize("name", ["llama", "t5", "bart", "bert"])
def test_a_saved_model_loads_by_its_task(name: str, tmp_path: Path) -> None:
    module, tokenizer = tiny_module(name)
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = tiny_model(name)
    loaded = load_base(tmp_path, task=made.task)
    assert type(loaded) is type(made)
    pairs = pairs_of(made)
    assert torch.equal(loaded.target_logits(loaded.encode(pairs)), made.target_logits(made.encode(pairs)))


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    module, tokenizer = tiny_module("llama")
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(Misconfigured, match="seq2seq"):
        load_base(tmp_path, task="seq2seq")
    with pytest.raises(Misconfigured, match=r"score\.weight"):  # a head that nobody trained
        load_base(tmp_path, task="classifier")
    with pytest.raises(Misconfigured, match="causal, seq2seq, classifier"):
        family_of("regression")
