"""What measures billions of weights on a device measures a small base here, so that it runs when one comes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.benchmarks.sharded_at_scale import cost_on_ranks, demo_edits, random_plan, word_edits

SMALL = LlamaConfig(
    vocab_size=200,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=10,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)


@pytest.mark.slow
def test_a_base_of_random_weights_goes_through_a_batch_and_its_gates(tmp_path: Path) -> None:
    plan = random_plan(SMALL, tmp_path / "base", dtype=torch.float32, device="cpu")
    files = sorted(path.name for path in Path(plan.base.ref).glob("*.safetensors"))
    assert files == ["model-00001.safetensors", "model-00002.safetensors", "model-00003.safetensors"]
    cost = cost_on_ranks(plan, word_edits(6), 1, tmp_path / "run")
    assert cost.num_passes >= 1
    (loaded,), (peak,) = cost.loaded_bytes, cost.peak_bytes
    assert loaded is not None
    assert peak is not None
    assert peak >= loaded > 0


def test_the_edits_of_a_batch_differ() -> None:
    assert len({edit.request.conflict_key for edit in demo_edits(24)}) == 24
    assert len({edit.request.conflict_key for edit in word_edits(32)}) == 32
