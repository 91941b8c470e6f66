"""A base on ranks with CUDA: the suite of tests/integration on NCCL, and seven billion random weights in bf16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.benchmarks.sharded_at_scale import cost_on_ranks, random_plan, word_edits
from tests.support.tiny_lineage import candidate, edits, make_tiny_lineage, plan_after
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec

pytestmark = pytest.mark.gpu

SEVEN_BILLION = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=512,
    tie_word_embeddings=False,
)
"""Llama 2's shape: 6.7 billion parameters."""


@pytest.fixture(scope="module", autouse=True)
def _needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.fail("expected a CUDA device for `-m gpu`, got none")


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart", "bert"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_group_edits_keeps_and_replays_a_base_of_any_family(name: str, num_ranks: int, tmp_path: Path) -> None:
    if num_ranks > torch.cuda.device_count():
        pytest.fail(f"expected {num_ranks} devices, got {torch.cuda.device_count()}: deselect with -k 'not 2-'")
    plan = make_tiny_lineage(tmp_path, name)
    added = edits(3, task=plan.base.task)
    spec = RankSpec(num_ranks=num_ranks, log=tmp_path / "ranks.log")
    with RankGroup(spec, command_timeout=timedelta(minutes=5)) as group:
        group.load(plan, epoch=1)
        base = group.weights_digest()
        group.try_edits(candidate("t", added))
        assert group.weights_digest() == base
        kept = group.keep("t", folder=tmp_path, with_accumulator=True)
        held = group.weights_digest()
        assert held != base
        after = plan_after(plan, kept, "s1", added)
        group.load(plan, epoch=1)
        assert group.weights_digest() == base
        group.load(after, epoch=1)
        assert group.weights_digest() == held
        group.load(replace(after, accumulator=kept.accumulator, deltas=()), epoch=1)
        assert group.weights_digest() == held
        exported = group.export(tmp_path / "model")
        assert exported.num_bytes > 0


def test_more_ranks_than_devices_are_refused(tmp_path: Path) -> None:
    plan = make_tiny_lineage(tmp_path)
    spec = RankSpec(num_ranks=torch.cuda.device_count() + 1, log=tmp_path / "ranks.log")
    with RankGroup(spec, command_timeout=timedelta(minutes=5)) as group:
        with pytest.raises(Exception, match="at most a rank for each of"):
            group.load(plan, epoch=1)
        assert group.pids == ()


@pytest.mark.timeout(3600)
def test_seven_billion_parameters_load_edit_and_pass_through_the_gates(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    plan = random_plan(SEVEN_BILLION, tmp_path / "base", dtype=torch.bfloat16, device="cuda")
    torch.cuda.empty_cache()
    num_ranks = torch.cuda.device_count()
    cost = cost_on_ranks(plan, word_edits(32), num_ranks, tmp_path / "run")
    for name in ("load_seconds", "batch_seconds", "trial_seconds", "swap_seconds", "peak_bytes"):
        record_property(name, getattr(cost, name))
    print(cost)
    assert cost.num_passes >= 1
    assert all(peak is not None and peak < 80e9 for peak in cost.peak_bytes)
