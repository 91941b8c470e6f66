"""What is run at scale where there is an accelerator runs here on a small model."""

from __future__ import annotations

import math

import torch
from transformers import LlamaConfig

from tests.benchmarks.training_at_scale import cost_of_training, eleven_billion


def test_the_steps_that_are_timed_at_scale_are_steps_of_training() -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    cost = cost_of_training(config, device="cpu", dtype=torch.float32, rank=4, num_steps=3)
    assert math.isfinite(cost.loss)
    assert cost.moved > 0


def test_the_large_base_has_eleven_billion_parameters() -> None:
    config = eleven_billion()
    of_block = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
    total = config.num_hidden_layers * of_block + 2 * config.vocab_size * config.hidden_size + config.hidden_size
    assert 10.5e9 < total < 11.5e9
