"""A prompt gets the same answer alone and in any batch, on models whose attention counts columns or positions."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from editors.models.causal import CausalModel
from editors.models.generation import beginnings, shared_length
from editors.models.hooks import side_branch
from editors.models.tokens import Encoded
from tests.support.tiny_models import tiny_tokenizer

SIZES = {
    "vocab_size": 56,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = 5
DOWN = tuple(f"model.layers.{place}.mlp.down_proj.weight" for place in range(1, 4))
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "gpt2": ({"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 128}, ()),
    "gpt_neo": (
        {"num_layers": 4, "num_heads": 2, "attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
        (),
    ),
    "mistral": ({"sliding_window": WINDOW}, ()),
    "qwen2": ({"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}, ()),
    "gemma2": ({"sliding_window": WINDOW}, DOWN),
    "gemma3_text": ({"sliding_window": WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}, DOWN),
    "phi3": ({"sliding_window": WINDOW}, DOWN),
    "phi3 that changes rotation": (
        {
            "model_type": "phi3",
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 24,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0] * 4,
                "long_factor": [40.0] * 4,
            },
        },
        DOWN,
    ),
    "mpt": (
        {"d_model": 16, "n_heads": 2, "n_layers": 4, "expansion_ratio": 1, "max_seq_len": 128},
        tuple(f"transformer.blocks.{place}.ffn.down_proj.weight" for place in range(1, 4)),
    ),
    "bloom": (
        {"n_layer": 4, "n_head": 2, "tie_word_embeddings": False},
        tuple(f"transformer.h.{place}.mlp.dense_4h_to_h.weight" for place in range(1, 4)),
    ),
}
"""Model type -> what its tiny config has beside the sizes, and the weights to edit where it has no default."""


def tiny_family(name: str, *, seed: int = 3, **changes: Any) -> CausalModel:
    """A tiny random model of a type, with weights large enough for what stands far away to matter."""
    extra, inner = FAMILIES[name]
    known = SIZES | extra | changes
    config = AutoConfig.for_model(known.pop("model_type", name), **known)
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.4)
    return CausalModel(module, tiny_tokenizer(), inner)


def prompts_with(shared: int, *lengths: int) -> list[list[int]]:
    """Prompts of one beginning, each with so many tokens of its own."""
    draw = random.Random(7)  # noqa: S311
    beginning = [draw.randrange(4, 56) for _ in range(shared)]
    return [[*beginning, *(draw.randrange(4, 56) for _ in range(length))] for length in lengths]


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> CausalModel:
    return tiny_family(request.param)


@pytest.mark.parametrize(
    "prompts",
    [
        prompts_with(20, 1, 14, 6),
        prompts_with(20, 3, 3),
        prompts_with(9, 1, 30, 12, 12),
        prompts_with(0, 2, 25, 11),
        [*prompts_with(0, 2, 25, 11), *prompts_with(20, 1, 14, 6)],
    ],
    ids=["shared", "even", "longer than what is shared", "nothing shared", "some shared"],
)
@pytest.mark.parametrize("forward_tokens", [1, 32])
def test_a_prompt_is_answered_alike_alone_and_in_any_batch(
    model: CausalModel, prompts: list[list[int]], forward_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editors.models.causal.FORWARD_TOKENS", forward_tokens)
    alone = [model.greedy([prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert model.greedy(prompts, max_new_tokens=8) == alone
    assert model.greedy(prompts[::-1], max_new_tokens=8) == alone[::-1]
    assert len({tuple(answer) for answer in alone}) > 1, "answers that do not depend on their prompts show nothing"


def test_an_answer_is_what_the_model_says_token_by_token_without_a_cache(model: CausalModel) -> None:
    if model.rotation_change is not None:
        pytest.skip("what is cached stays rotated as it was, where an answer comes to the change")
    prompts = prompts_with(20, 1, 14)
    for prompt, answer in zip(prompts, model.greedy(prompts, max_new_tokens=6), strict=True):
        ids = list(prompt)
        for token in answer:
            logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            ids.append(token)


def test_a_row_that_leaves_the_batch_changes_no_other(model: CausalModel) -> None:
    prompts = prompts_with(20, 1, 14, 6)
    whole = [model.greedy([prompt], max_new_tokens=7)[0] for prompt in prompts]
    cut = model.greedy(prompts, max_new_tokens=7, is_done=lambda place, tokens: len(tokens) > 2 * place)
    assert cut == [answer[: 2 * place + 1] for place, answer in enumerate(whole)]


def test_answers_with_branches_beside_the_weights_are_made_in_one_batch_with_the_others(model: CausalModel) -> None:
    prompts = [*prompts_with(20, 1, 14, 6), *prompts_with(20, 1, 14, 6)]
    beside = {1, 3, 4}
    draw = torch.Generator().manual_seed(5)
    branches = {
        param.name: (
            torch.randn(param.in_features, 2, generator=draw),
            torch.randn(2, param.out_features, generator=draw) * 4,
        )
        for param in model.inner
    }
    plain = model.greedy(prompts, max_new_tokens=7)
    with side_branch(model.module, branches):
        branched = model.greedy(prompts, max_new_tokens=7)
    assert all(branched[place] != plain[place] for place in beside)
    expected = [(branched if place in beside else plain)[place] for place in range(len(prompts))]
    assert model.greedy_beside(prompts, beside, branches, max_new_tokens=7) == expected
    cut = model.greedy_beside(
        prompts, beside, branches, max_new_tokens=7, is_done=lambda place, tokens: len(tokens) > place
    )
    assert cut == [answer[: place + 1] for place, answer in enumerate(expected)]


def test_padding_and_what_enters_the_first_edited_block_change_no_logit(model: CausalModel) -> None:
    if model.rotation_change is not None:
        pytest.skip("its batches are cut where the rotation changes")
    sequences = [Encoded(prompt_ids=tuple(prompt), target_ids=(5, 9)) for prompt in prompts_with(20, 1, 14, 6)]
    alone = torch.cat([model.target_logits(model.pack([one])) for one in sequences])
    together = model.prefixed(model.pack(sequences))
    torch.testing.assert_close(model.target_logits(together), alone, rtol=1e-4, atol=1e-5)


def test_prompts_are_read_together_that_begin_alike_or_have_about_the_same_length() -> None:
    chats, others = prompts_with(20, 1, 14, 6, 6, 9), prompts_with(0, 1, 40, 3, 38, 5)[1:]
    prompts = [*others, *chats]
    assert beginnings(prompts) == [[4, 5, 6, 7, 8], [0, 2], [3, 1]]
    assert beginnings(prompts, forward_tokens=1000) == [[0, 2, 5, 8, 6, 7, 4, 3, 1]]
    assert sorted(place for group in beginnings(prompts, forward_tokens=1) for place in group) == list(range(9))


def test_what_prompts_share_is_worth_a_forward_of_its_own() -> None:
    assert shared_length(prompts_with(20, 1, 14)) == 20
    assert shared_length(prompts_with(4, 1, 14)) == 0


def test_sequences_on_both_sides_of_a_change_of_rotation_are_in_no_batch_together() -> None:
    model = tiny_family("phi3 that changes rotation")
    assert model.rotation_change == 24
    sequences = [Encoded(prompt_ids=tuple(prompt), target_ids=(5,)) for prompt in prompts_with(20, 1, 4, 5, 14)]
    for cut in (model.chunked, model.chunked_alike):
        batches = [(places, model.prefixed(batch)) for places, batch in cut(sequences, max_tokens=2_000)]
        assert [places for places, _ in batches] == [[0, 1], [2, 3]]
        for places, batch in batches:
            alone = [model.target_logits(model.pack([sequences[place]])) for place in places]
            torch.testing.assert_close(model.target_logits(batch), torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert tiny_family("phi3").rotation_change is None
