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

from editors.deltas import PlainWeights, WeightDelta
from editors.families import EditableModel, editable, family_of
from editors.inner_params import InnerParam
from pipeline.domain.trials import BaseSpec
from tests.tiny_families import pairs_of
from workers.sharded_model import ShardedModel, join_group, load_sharded
from workers.sharded_weights import ShardedWeights


def main(folder: str, task: str, *names: str) -> dict[str, Any]:
    module = family_of(task).loader.from_pretrained(folder, dtype=torch.float32)
    join_group()  # from here on transformers shards whatever it loads
    sharded = load_sharded(BaseSpec(ref=folder, digest="", task=task))
    plain = editable(task, module, sharded.tokenizer, names)
    model = editable(task, sharded.module, sharded.tokenizer, names)
    assert model.inner == plain.inner
    return {"base": bool(torch.equal(logits(model), logits(plain)))} | compare(sharded, model, plain)


def compare(sharded: ShardedModel, model: EditableModel, plain: EditableModel) -> dict[str, Any]:
    params = plain.inner
    weights, reference = ShardedWeights(sharded, params), PlainWeights(plain.module, params)
    before, digest = logits(model), weights.digest()
    first, second = delta(params, seed=1), delta(params, seed=2)
    for store in (weights, reference):
        store.apply(first)
    saved, once = weights.save(), weights.digest()
    shift_digest = {name: weights.shift(name).clone() for name in (param.name for param in params)}
    for store in (weights, reference):
        store.apply(second)
    prompts = [prompt for prompt, _ in pairs_of(plain)]
    found = {
        "changed": not torch.equal(logits(model), before),
        "edited": float((logits(model) - logits(plain)).abs().max()),
        "shift": max(float((weights.shift(p.name) - reference.shift(p.name)).abs().max()) for p in params),
        "norm": max(abs(weights.base_norm(p.name) / reference.base_norm(p.name) - 1) for p in params),
        "generated": model.generate(prompts, max_new_tokens=6) == plain.generate(prompts, max_new_tokens=6),
    }
    weights.restore(saved)
    found["restored_once"] = weights.digest() == once
    weights.set_accumulators({})
    found["restored_base"] = weights.digest() == digest and bool(torch.equal(logits(model), before))
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
def logits(model: EditableModel) -> torch.Tensor:
    return model.target_logits(model.encode(pairs_of(model)))


if __name__ == "__main__":
    sys.stdout.flush()
    stdout, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(main(*sys.argv[1:])), file=stdout)
