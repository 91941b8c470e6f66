"""What goes through the edited layers: captured, added to, and run without the blocks before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from editors.models.families import CausalModel, TargetBatch
from editors.models.hooks import Places, capturing, side_branch
from editors.models.inner_params import default_subject_params
from editors.weights.deltas import PlainWeights, WeightDelta
from editors.weights.loading import load_base
from pipeline.domain.errors import Misconfigured
from tests.support.tiny_models import save_tiny_gpt2, save_tiny_llama

PAIRS = [("the capital of Japan is", "Tokyo"), ("Rome is located in", "Italy Milan"), ("who spoken by", "king")]
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32},
    "gpt_neo": {"hidden_size": 16, "num_layers": 4, "num_heads": 2, "attention_types": [[["global", "local"], 2]]},
    "gptj": {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32, "rotary_dim": 4},
    "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24},
    "llama": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24},
    "mistral": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1},
    "qwen2": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1},
    "qwen3": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1},
}


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> CausalModel:
    (save_tiny_llama if request.param == "llama" else save_tiny_gpt2)(tmp_path)
    loaded = load_base(tmp_path)
    assert isinstance(loaded, CausalModel)
    return loaded


def of_type(model_type: str, tokenizer: Any) -> CausalModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, vocab_size=64, bos_token_id=1, eos_token_id=2, **SMALL[model_type])
    return CausalModel(AutoModelForCausalLM.from_config(config), tokenizer)


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def targets_of(model: CausalModel, batch: TargetBatch) -> dict[str, Places]:
    """The tokens that predict the target's, in every inner layer."""
    return dict.fromkeys(model.inner_param_names, (batch.row_N, batch.position_N))


def test_rank_one_sums_of_a_capture_equal_the_weight_gradient(model: CausalModel) -> None:
    batch = model.encode(PAIRS)
    with capturing(model.module, targets_of(model, batch)) as seen:
        logits = model.target_logits(batch)
        loss = nn.functional.cross_entropy(logits, batch.target_N, reduction="sum")
        deltas = seen.deltas(loss)
    param = model.inner[-1]  # of the last block, so that other positions than the targets' cannot reach the loss
    weight = model.module.get_parameter(param.name).requires_grad_(True)
    plain = nn.functional.cross_entropy(model.target_logits(batch), batch.target_N, reduction="sum")
    (expected,) = torch.autograd.grad(plain, weight)
    weight.requires_grad_(False)
    gradient_IO = seen.u_TI[param.name].T @ deltas[param.name]
    found = gradient_IO if param.fan_in_fan_out else gradient_IO.T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_capture_is_bitwise_repeatable_and_changes_no_logit(model: CausalModel) -> None:
    batch = model.encode(PAIRS)
    runs = []
    for _ in range(2):
        with capturing(model.module, targets_of(model, batch)) as seen:
            logits = model.target_logits(batch)
            runs.append((logits.detach(), seen.u_TI, seen.deltas(logits.logsumexp(1).sum())))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][0], model.target_logits(batch))
    for name in model.inner_param_names:
        assert torch.equal(runs[0][1][name], runs[1][1][name])
        assert torch.equal(runs[0][2][name], runs[1][2][name])


def test_a_side_branch_gives_what_written_weights_give(model: CausalModel) -> None:
    torch.manual_seed(3)
    batch = model.encode(PAIRS)
    factors = {p.name: (torch.randn(p.in_features, 2), torch.randn(2, p.out_features) * 0.1) for p in model.inner}
    before = model.target_logits(batch)
    with side_branch(model.module, factors):
        beside = model.target_logits(batch)
    PlainWeights(model.module, model.inner).apply(WeightDelta.of(factors))
    written = model.target_logits(batch)
    assert not torch.allclose(before, written, atol=1e-3)
    torch.testing.assert_close(beside, written, rtol=1e-4, atol=1e-5)


def test_hooks_are_released_whatever_happens(model: CausalModel) -> None:
    before, batch = hooks_of(model.module), model.encode(PAIRS)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        side_branch(model.module, {}),
        capturing(model.module, targets_of(model, batch)),
    ):
        raise RuntimeError("on purpose")
    model.target_logits(model.prefixed(batch, model.inner[-1:]))
    assert hooks_of(model.module) == before


@pytest.mark.parametrize("model_type", sorted(SMALL))
def test_the_frozen_prefix_gives_the_same_logits_in_every_architecture(model_type: str, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    model = of_type(model_type, load_base(tmp_path).tokenizer)
    batch = model.encode(PAIRS)
    short = model.prefixed(batch, model.inner[-1:])
    blocks = list(model.module.get_submodule(model.inner[0].blocks_name).children())
    assert short.prefix is not None
    torch.testing.assert_close(model.target_logits(short), model.target_logits(batch), rtol=0, atol=1e-6)
    assert list(model.module.get_submodule(model.inner[0].blocks_name).children()) == blocks


def test_the_frozen_prefix_stays_right_after_an_edit(model: CausalModel) -> None:
    batch = model.encode(PAIRS)
    later = model.inner[-1:]
    short = model.prefixed(batch, later)
    factors = {p.name: (torch.ones(p.in_features, 1), torch.ones(1, p.out_features) * 0.2) for p in later}
    PlainWeights(model.module, later).apply(WeightDelta.of(factors))
    torch.testing.assert_close(model.target_logits(short), model.target_logits(batch), rtol=0, atol=1e-6)


def test_blocks_come_back_after_a_failing_forward(model: CausalModel) -> None:
    batch = model.prefixed(model.encode(PAIRS), model.inner[-1:])
    blocks = model.module.get_submodule(model.inner[0].blocks_name)
    before = list(blocks.children())

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = before[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.target_logits(batch)
    handle.remove()
    assert list(blocks.children()) == before


def test_target_logits_are_those_of_the_whole_model(model: CausalModel) -> None:
    batch = model.encode(PAIRS)
    whole = model.module(input_ids=batch.input_ids_BL).logits[batch.row_N, batch.position_N]
    torch.testing.assert_close(model.target_logits(batch), whole, rtol=0, atol=1e-6)


def test_inner_params_are_the_measured_blocks_at_the_measured_depth(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path, num_blocks=30)
    model = load_base(tmp_path)
    subject, answer = (
        tuple(f"model.layers.{i}.mlp.down_proj.weight" for i in blocks) for blocks in (range(3, 11), (22, 23, 24))
    )
    assert model.inner_param_names == (*subject, *answer)
    assert default_subject_params(model.module) == subject


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("model.layers.9.mlp.down_proj.weight", "does not have"),
        ("model.layers.0.mlp.down_proj.bias", "Linear or Conv1D"),
        ("model.embed_tokens.weight", "Linear or Conv1D"),
        ("lm_head.weight", "list of transformer blocks"),
    ],
)
def test_a_name_that_cannot_be_edited_is_refused(name: str, complaint: str, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    with pytest.raises(Misconfigured, match=complaint):
        load_base(tmp_path, [name])


def test_an_unknown_architecture_needs_explicit_names(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    model = load_base(tmp_path)
    model.module.config.model_type = "brand_new"
    with pytest.raises(Misconfigured, match="brand_new"):
        CausalModel(model.module, model.tokenizer)
    chosen = CausalModel(model.module, model.tokenizer, ["model.layers.2.mlp.up_proj.weight"])
    assert chosen.inner[0].block == 2
