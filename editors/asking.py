"""Loads a snapshot into a plain model and asks it: `python -m editors.asking FILE`. Knows no group and no registry.

FILE is JSON: {"plan": a LoadPlan, "prompts": [...], "max_new_tokens": n}. Prints [{"prompt", "text"}, ...].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from editors.deltas import PlainWeights, WeightDelta, load_accumulators
from editors.families import CausalModel
from pipeline.domain.errors import CorrigendaError, Misconfigured
from pipeline.domain.trials import LoadPlan


def load_snapshot(plan: LoadPlan) -> CausalModel:
    """The base with the snapshot's accumulators and deltas applied, every file checked against its digest.

    Raises:
        Misconfigured: if the base cannot be loaded.
        IntegrityBroken: if a file does not have its digest.
    """
    model = CausalModel(*load_base(Path(plan.base.ref)), plan.editor.inner_params)
    weights = PlainWeights(model.module, model.inner)
    if plan.accumulator is not None:
        weights.set_accumulators(load_accumulators(Path(plan.accumulator.path), plan.accumulator.digest))
    for delta in plan.deltas:
        weights.apply(WeightDelta.load(Path(delta.path), delta.digest))
    return model


def load_base(folder: Path) -> tuple[Any, Any]:
    """A causal model in fp32 and its tokenizer.

    Raises:
        Misconfigured: if the folder holds no model that transformers can read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise Misconfigured(f"expected a causal language model in {folder}, got: {error}") from error


def main(file: str) -> int:
    """Answer the prompts of a file."""
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    prompts: list[str] = asked["prompts"]
    try:
        model = load_snapshot(TypeAdapter(LoadPlan).validate_python(asked["plan"]))
        answers = model.generate(prompts, max_new_tokens=asked["max_new_tokens"])
    except CorrigendaError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps([{"prompt": p, "text": a} for p, a in zip(prompts, answers, strict=True)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
