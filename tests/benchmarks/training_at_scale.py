"""MEND's training on a decoder of random weights and any size: what a step costs in seconds and memory."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.nn.utils import parameters_to_vector
from transformers import LlamaConfig, LlamaForCausalLM

from editors.mend.transform import MendTransform, shapes_of
from editors.methods.mend_sum import published_inner_params
from editors.models.causal import CausalModel
from editors.models.tokens import Encoded
from editors.training.examples import Example, Examples
from editors.training.mend_objective import MendObjective, MendObjectiveSettings
from tests.support.tiny_models import tiny_tokenizer

PROMPT_TOKENS, TARGET_TOKENS, TEXT_TOKENS = 24, 4, 64
"""About twice the length of CounterFact's prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What steps of training came to."""

    num_parameters: int
    """Of the base."""
    seconds_per_step: float
    """Median over the steps after the first."""
    peak_bytes: int | None
    """Most memory that was allocated on the device, base, network and optimizer included; None on a CPU."""
    loss: float
    """Of the last step."""
    moved: float
    """How far the steps took what is learned, Euclidean."""


def eleven_billion() -> LlamaConfig:
    """Llama 2's shape of 13 billion parameters with 34 of its 40 blocks."""
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=5120,
        intermediate_size=13_824,
        num_hidden_layers=34,
        num_attention_heads=40,
        num_key_value_heads=40,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )


def cost_of_training(
    config: LlamaConfig, *, device: str, dtype: torch.dtype, rank: int = 1920, num_steps: int = 5
) -> Cost:
    """Make steps of the published objective: 10 single edits each, MLPs of the last three blocks, the paper's rank."""
    module: Any = _random_weights(config, device=device, dtype=dtype)
    model = CausalModel(module, tiny_tokenizer(), published_inner_params(module))
    transform = MendTransform(shapes_of(model.inner), rank=rank).to(device)
    objective = MendObjective(model, transform, _examples(config.vocab_size), MendObjectiveSettings())
    objective.begin()
    groups = objective.groups()
    optimizer = torch.optim.Adam(groups)
    start = parameters_to_vector(transform.parameters()).detach().clone()
    seconds, loss = [], float("nan")
    for step in range(num_steps):
        began = time.perf_counter()
        losses = objective.episode(step, random.Random(step))  # noqa: S311
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        loss = losses.parts["loss"]
        seconds.append(time.perf_counter() - began)
    peak_bytes = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return Cost(
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        seconds_per_step=median(seconds[1:]),
        peak_bytes=peak_bytes,
        loss=loss,
        moved=float((parameters_to_vector(transform.parameters()).detach() - start).norm()),
    )


def _random_weights(config: LlamaConfig, *, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """Built on the device in its dtype: there is never a second copy."""
    usual = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    return module.eval().requires_grad_(False)


def _examples(num_words: int, *, num_edits: int = 64) -> Examples:
    draw = random.Random(0)  # noqa: S311

    def sequence(num_prompt: int, num_target: int) -> Encoded:
        ids = [draw.randrange(3, num_words) for _ in range(num_prompt + num_target)]
        return Encoded(prompt_ids=tuple(ids[:num_prompt]), target_ids=tuple(ids[num_prompt:]))

    examples = tuple(
        Example(
            edit=sequence(PROMPT_TOKENS, TARGET_TOKENS),
            rephrases=(sequence(PROMPT_TOKENS, TARGET_TOKENS),),
            locality=(sequence(PROMPT_TOKENS, TARGET_TOKENS),),
        )
        for _ in range(num_edits)
    )
    text = tuple(sequence(1, TEXT_TOKENS) for _ in range(8))
    return Examples(training=examples, held_out=examples[:8], text=text)
