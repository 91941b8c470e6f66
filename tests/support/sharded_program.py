"""One rank of a test: loads tiny models into ZeRO-3, edits their shards, and compares with the unsharded models.

Takes the models as a list of [folder, task, inner parameters]; returns a list with what was found of each. Run by
test_sharded_weights.py with `run_ranks`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerFast

from editors.methods.edit_reading import Group, Reader, Sequences
from editors.methods.frames import frames_of
from editors.methods.pairs import Pairs
from editors.models.families import EditableModel, editable, family_of
from editors.models.inner_params import InnerParam
from editors.weights.deltas import PlainWeights, WeightDelta
from pipeline.domain.rank_api import BaseSpec, EditorSettings
from tests.support.tiny_families import pairs_of
from tests.support.tiny_lineage import edits
from workers.rank.sharded_model import ShardedModel, join_group, load_sharded
from workers.rank.sharded_weights import ShardedWeights


def main(models: Sequence[tuple[str, str, Sequence[str]]]) -> list[dict[str, Any]]:
    modules = [family_of(task).loader.from_pretrained(folder, dtype=torch.float32) for folder, task, _ in models]
    join_group()  # from here on transformers shards whatever it loads
    return [found_of(module, *model) for module, model in zip(modules, models, strict=True)]


def found_of(module: nn.Module, folder: str, task: str, names: Sequence[str]) -> dict[str, Any]:
    sharded = load_sharded(BaseSpec(ref=folder, digest="", task=task))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)  # of words; Qwen 2's own class would make bytes of them
    plain = editable(task, module, tokenizer, names)
    model = editable(task, sharded.module, tokenizer, names)
    assert model.inner == plain.inner
    is_equal = bool(torch.equal(logits(model), logits(plain)))
    found = {"base": is_equal, "gradients": gradient_distance(model, plain, task)}
    return found | compare(sharded, model, plain)


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


def gradient_distance(model: EditableModel, plain: EditableModel, task: str) -> float:
    """Of the gradients that two edits have at the inner layers, relative (Frobenius): the largest of any layer."""
    asked, group = edits(2, task=task), Group(params=plain.inner, kind="answer")

    def read(one: EditableModel) -> Pairs:
        settings = EditorSettings(frames_per_pass=0, num_guards=0, rephrase_rows=0)
        sequences = Sequences.of([frames_of(one, edit, settings) for edit in asked], group)
        return Reader(one, sequences).read(range(len(asked)), {})

    of_ranks, of_one = read(model), read(plain)
    assert all(torch.equal(of_ranks.u_TI[name], u_TI) for name, u_TI in of_one.u_TI.items())
    reached = {name: delta_TO.double() for name, delta_TO in of_one.delta_TO.items() if bool(delta_TO.any())}
    assert reached, "the loss of two edits has no gradient at any inner layer"
    return max(float((of_ranks.delta_TO[name] - one_TO).norm() / one_TO.norm()) for name, one_TO in reached.items())


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
