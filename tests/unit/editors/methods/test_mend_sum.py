"""MEND's own update, the sum of rank-one terms over every token, in every family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from editors.measure.scoring import prepare
from editors.mend.transform import MendTransform, shapes_of
from editors.methods.base import EditJob, EditResult
from editors.methods.mend_sum import MendSumEditor, every_token, published_inner_params, token_pairs
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from editors.weights.deltas import PlainWeights
from pipeline.domain.errors import EditorFailed, InvalidInput, Misconfigured
from tests.support.factories import make_edit
from tests.support.tiny_families import ARCHITECTURES, pairs_of, tiny_model, tiny_module

FAMILIES = ("llama", "gpt2", "t5", "bart", "bert")
NOTHING = Ledger(Prior(moments={}, num_tokens=0), strength=1.0, ridge=1.0)
"""An empty ledger: a sum does not look into it."""


def model_of(name: str) -> EditableModel:
    """A tiny model that is edited in the weights that the paper edits."""
    module, _ = tiny_module(name)
    return tiny_model(name, inner_params=published_inner_params(module))


def edits_of(model: EditableModel) -> list:
    return [make_edit(prompt, prompt=prompt, target_new=target) for prompt, target in pairs_of(model)]


def edited(model: EditableModel, transform: MendTransform) -> EditResult:
    weights = PlainWeights(model.module, model.inner)
    editor = MendSumEditor(transform)
    return editor.edit(EditJob(model=model, weights=weights, ledger=NOTHING, added=edits_of(model)))


def observed(model: EditableModel, *, step: float = 0.05) -> MendTransform:
    """A transform at its start, with statistics and rates of the model's own pairs."""
    transform = MendTransform(shapes_of(model.inner), rank=2)
    sequences = [model.encode_pair(prompt, target) for prompt, target in pairs_of(model)]
    pairs = token_pairs(model, prepare(model, sequences))
    for name in model.inner_param_names:
        transform.observe(name, pairs.u_TI[name], pairs.delta_TO[name])
    transform.initial_rates(pairs.u_TI, pairs.delta_TO, step=step)
    return transform


def loss_of(model: EditableModel) -> torch.Tensor:
    """The edit loss: the sum over the edits of the mean over their target tokens."""
    total = torch.zeros(())
    for pair in pairs_of(model):
        batch = model.encode([pair])
        total = total + nn.functional.cross_entropy(model.target_logits(batch), batch.target_N)
    return total


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sum_of_an_identity_that_saw_nothing_is_autograds_weight_gradient(name: str) -> None:
    model = model_of(name)
    delta = edited(model, MendTransform(shapes_of(model.inner), rank=2)).delta
    parameters = {p.name: model.module.get_parameter(p.name).requires_grad_(True) for p in model.inner}
    expected = dict(zip(parameters, torch.autograd.grad(loss_of(model), list(parameters.values())), strict=True))
    for param in model.inner:
        left_IT, right_TO = delta.factors[param.name]
        change_IO = left_IT @ right_TO
        found = change_IO if param.fan_in_fan_out else change_IO.T
        torch.testing.assert_close(found, -expected[param.name], rtol=1e-3, atol=1e-6)
        assert expected[param.name].abs().max() > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_start_it_moves_the_loss_the_right_way(name: str) -> None:
    model = model_of(name)
    transform = observed(model)
    with torch.no_grad():
        before = float(loss_of(model))
        result = edited(model, transform)
        PlainWeights(model.module, model.inner).apply(result.delta)
        assert float(loss_of(model)) < before


def test_many_sequences_at_once_give_what_each_gives_alone() -> None:
    model = model_of("llama")
    sequences = [model.encode_pair(prompt, target) for prompt, target in pairs_of(model)]
    together = token_pairs(model, prepare(model, sequences))
    for place, sequence in enumerate(sequences):
        alone = token_pairs(model, prepare(model, [sequence]))
        for name in model.inner_param_names:
            rows = together.slices(name)[place]
            torch.testing.assert_close(together.u_TI[name][rows], alone.u_TI[name])
            torch.testing.assert_close(together.delta_TO[name][rows], alone.delta_TO[name])


def test_every_token_of_prompt_and_target_is_a_key_and_no_padding() -> None:
    model = model_of("gpt2")
    batch = model.encode(pairs_of(model))
    rows, positions = every_token(model, batch, model.inner[0])
    sequences = [model.encode_pair(prompt, target) for prompt, target in pairs_of(model)]
    lengths = [len(sequence.prompt_ids) + len(sequence.target_ids) - 1 for sequence in sequences]
    expected = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    assert list(zip(rows.tolist(), positions.tolist(), strict=True)) == expected


def test_weights_and_model_on_exit_equal_those_on_entry_and_bits_repeat() -> None:
    model = model_of("llama")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    transform = observed(model)
    first, second = edited(model, transform), edited(model, transform)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.module.parameters())
    for name in model.inner_param_names:
        for one, two in zip(first.delta.factors[name], second.delta.factors[name], strict=True):
            assert torch.equal(one, two)


def test_the_rows_say_what_the_weights_come_to() -> None:
    model = model_of("gpt2")
    weights = PlainWeights(model.module, model.inner)
    result = edited(model, observed(model))
    weights.apply(result.delta)
    for name in model.inner_param_names:
        torch.testing.assert_close(
            result.rows.keys_of(name) @ weights.shift(name), result.rows.targets_of(name), rtol=1e-3, atol=1e-5
        )
        assert [edit_id for edit_id, _, _ in result.rows.ranges[name]] == [e.edit_id for e in edits_of(model)]
        assert result.rows.ranges[name][-1][2] == len(result.rows.keys[name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", "model.layers.{}.mlp.{}.weight 123 gate_proj up_proj down_proj"),
        ("gpt2", "transformer.h.{}.mlp.{}.weight 123 c_fc c_proj"),
        ("gptj", "transformer.h.{}.mlp.{}.weight 123 fc_in fc_out"),
        ("bert", "bert.encoder.layer.{}.{}.dense.weight 123 intermediate output"),
    ],
)
def test_the_papers_weights_are_the_mlps_of_the_last_three_blocks(name: str, expected: str) -> None:
    pattern, blocks, *parts = expected.split()
    module, _ = tiny_module(name)
    assert published_inner_params(module) == tuple(pattern.format(b, part) for b in blocks for part in parts)


@pytest.mark.parametrize("name", ["t5", "t5_gated", "bart"])
def test_the_papers_weights_are_the_mlps_of_the_last_two_blocks_of_encoder_and_decoder(name: str) -> None:
    module, _ = tiny_module(name)
    names = published_inner_params(module)
    assert set(ARCHITECTURES[name].expected) < set(names)
    blocks = {tuple(part for part in found.split(".") if part in ("encoder", "decoder", "1", "2")) for found in names}
    assert {stack for stack, *_ in blocks} == {"encoder", "decoder"}
    assert len(names) == (12 if name == "t5_gated" else 8)


def test_what_a_sum_cannot_do_is_refused() -> None:
    model = model_of("llama")
    weights = PlainWeights(model.module, model.inner)
    editor = MendSumEditor(observed(model))
    with pytest.raises(InvalidInput, match="recursive"):
        editor.edit(EditJob(model=model, weights=weights, ledger=NOTHING, removed_ids=["an id"]))
    with pytest.raises(EditorFailed, match="none"):
        editor.edit(EditJob(model=model, weights=weights, ledger=NOTHING))
    other = MendSumEditor(MendTransform({"other.weight": (16, 16)}, rank=1))
    with pytest.raises(Misconfigured, match="inner parameter"):
        other.edit(EditJob(model=model, weights=weights, ledger=NOTHING, added=edits_of(model)))
