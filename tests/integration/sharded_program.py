"""One rank of a test: loads a tiny model into ZeRO-3, edits its shards, and compares with the unsharded model.

Prints one line of JSON. Run by test_sharded_weights.py with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from editors.deltas import PlainWeights, WeightDelta
from editors.inner_params import InnerParam, inner_params
from pipeline.domain.trials import BaseSpec
from workers.sharded_model import ShardedModel, join_group, load_sharded
from workers.sharded_weights import ShardedWeights

IDS_BL = torch.tensor([[1, 5, 6, 7, 8, 9], [1, 9, 11, 4, 5, 6]])


def main(folder: str, *names: str) -> dict[str, Any]:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    join_group()  # from here on transformers shards whatever it loads
    sharded = load_sharded(BaseSpec(ref=folder, digest="", task="causal"))
    params = inner_params(plain, names)
    found: dict[str, Any] = {"base": bool(torch.equal(logits(sharded.module), logits(plain)))}
    return found | compare(sharded, plain, params)


def compare(sharded: ShardedModel, plain: Any, params: Sequence[InnerParam]) -> dict[str, Any]:
    module = sharded.module
    weights, reference = ShardedWeights(sharded, params), PlainWeights(plain, params)
    before, digest = logits(module), weights.digest()
    first, second = delta(params, seed=1), delta(params, seed=2)
    for store in (weights, reference):
        store.apply(first)
    saved, once = weights.save(), weights.digest()
    shift_digest = {name: weights.shift(name).clone() for name in (param.name for param in params)}
    for store in (weights, reference):
        store.apply(second)
    found = {
        "changed": not torch.equal(logits(module), before),
        "edited": float((logits(module) - logits(plain)).abs().max()),
        "shift": max(float((weights.shift(p.name) - reference.shift(p.name)).abs().max()) for p in params),
        "norm": max(abs(weights.base_norm(p.name) / reference.base_norm(p.name) - 1) for p in params),
        "generated": bool(torch.equal(generated(module), generated(plain))),
    }
    weights.restore(saved)
    found["restored_once"] = weights.digest() == once
    weights.set_accumulators({})
    found["restored_base"] = weights.digest() == digest and bool(torch.equal(logits(module), before))
    weights.set_accumulators(shift_digest)
    found["reloaded"] = weights.digest() == once
    return found | {"rank": dist.get_rank(), "digest": once}


def delta(params: Sequence[InnerParam], *, seed: int) -> WeightDelta:
    draw = torch.Generator().manual_seed(seed)
    return WeightDelta.of(
        {
            param.name: (
                torch.randn(param.in_features, 3, generator=draw),
                torch.randn(3, param.out_features, generator=draw) * 0.1,
            )
            for param in params
        }
    )


@torch.no_grad()
def logits(module: Any) -> torch.Tensor:
    result: torch.Tensor = module(input_ids=IDS_BL, use_cache=False).logits
    return result


@torch.no_grad()
def generated(module: Any) -> torch.Tensor:
    result: torch.Tensor = module.generate(
        input_ids=IDS_BL, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(IDS_BL)
    )
    return result


if __name__ == "__main__":
    sys.stdout.flush()
    stdout, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(main(*sys.argv[1:])), file=stdout)
