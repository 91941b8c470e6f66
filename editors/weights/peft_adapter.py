"""Writes a snapshot as a LoRA adapter of PEFT, on the pristine base: `python -m editors.weights.peft_adapter FILE`.

FILE is JSON: {"plan": a LoadPlan, "out": a new or empty folder, "base_name": how the adapter names its base,
"max_rank": the most columns of a factor, or null}. Prints what was written.

Edits add `S = F D` to a weight. PEFT adds `B A`, with `A = F^T` and `B = D^T`: the same numbers, whatever way the layer
stores its weight, because PEFT transposes for a Conv1D itself. The scaling of every layer is 1.

Deltas of several snapshots add up, and so do their ranks, up to the width of the layer. Directions that fp32 cannot
tell from rounding are left out. No more is, unless a rank is given; then the error is told for every layer.

Legend: I in_features, O out_features, R rank.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from editors.data.atomic_files import partial_of, replace_folder
from editors.models.digest import base_digest, require_base
from editors.models.families import family_of
from editors.models.inner_params import InnerParam, inner_params
from editors.weights.deltas import WeightDelta, load_accumulators
from editors.weights.loading import UNREADABLE
from pipeline.domain.errors import CorrigendaError, InvalidInput, Misconfigured, one_line
from pipeline.domain.rank_api import LoadPlan

TASKS = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classifier": None}
"""PEFT's task by ours; its own for classifiers would want to hold the head too, which edits leave alone."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""
PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """The change of one weight as two factors, and what that leaves out."""

    left_IR: Tensor
    """The factor F, fp32, which PEFT calls A when it is transposed."""
    right_RO: Tensor
    """The factor D, fp32, which PEFT calls B when it is transposed."""
    error: float
    """Frobenius norm of what is left out, as a share of the change's."""
    is_cut: bool
    """Whether more than rounding was left out, for the sake of a rank."""

    @property
    def rank(self) -> int:
        """How many columns F has."""
        return int(self.left_IR.shape[1])


def low_rank(shift_IO: Tensor, max_rank: int | None = None) -> LowRank:
    """Return the best factors of a change: of as low a rank as fp32 tells, or of a given one.

    Args:
        shift_IO: the whole change, in double precision.
        max_rank: the most columns; None to leave nothing out that fp32 can tell.
    """
    left_IK, sizes_K, right_KO = torch.linalg.svd(shift_IO, full_matrices=False)
    noise = float(sizes_K[0]) * max(shift_IO.shape) * torch.finfo(torch.float32).eps
    needed = int((sizes_K > noise).sum())
    rank = needed if max_rank is None else min(needed, max_rank)
    # Each factor takes the root of a singular value, so that both are of one size and fp32 rounds both alike.
    roots_R = sizes_K[:rank].sqrt()
    left_IR = (left_IK[:, :rank] * roots_R).float().contiguous()
    right_RO = (roots_R[:, None] * right_KO[:rank]).float().contiguous()
    whole = float(shift_IO.norm())
    error = float((shift_IO - left_IR.double() @ right_RO.double()).norm()) / whole if whole else 0.0
    return LowRank(left_IR=left_IR, right_RO=right_RO, error=error, is_cut=rank < needed)


def write_adapter(plan: LoadPlan, out: Path, *, base_name: str = "", max_rank: int | None = None) -> dict[str, Any]:
    """Write `adapter_config.json` and `adapter_model.safetensors`; return what was written, for people.

    Args:
        plan: the snapshot.
        out: new or empty folder; it appears whole or not at all.
        base_name: how the adapter names its base; the folder that the lineage was made with if empty.
        max_rank: the most columns of a factor.

    Raises:
        InvalidInput: if the folder is taken, or the snapshot is the base itself.
        IntegrityBroken: if a file does not have its digest.
        WrongBase: if the base's folder holds another model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"expected a new or empty folder for an adapter, got {out}")
    folder = Path(plan.base.ref)
    require_base(replace(plan.base, ref=str(folder)), base_digest(folder))
    params = _edited_layers(plan)
    shifts = _shifts(plan, params)
    factors = {name: low_rank(shift_IO, max_rank) for name, shift_IO in shifts.items() if bool(shift_IO.any())}
    if not factors:
        raise InvalidInput(
            "expected a snapshot that changes the base, got one that does not: there is nothing to write"
        )
    partial = partial_of(out)
    partial.mkdir(parents=True, exist_ok=True)
    chosen = [param for param in params if param.name in factors]
    tensors: dict[str, Tensor] = {}
    for param in chosen:
        found = factors[param.name]
        tensors[f"{PREFIX}{param.module_name}.lora_A.weight"] = found.left_IR.T.contiguous()
        tensors[f"{PREFIX}{param.module_name}.lora_B.weight"] = found.right_RO.T.contiguous()
    save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
    (partial / "adapter_model.safetensors").chmod(0o644)  # the library makes files that only their owner may read
    ranks = {param.module_name: factors[param.name].rank for param in chosen}
    config = _config(plan, chosen, ranks, base_name or plan.base.ref)
    (partial / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    replace_folder(partial, out)
    rank, error = max(ranks.values()), max(found.error for found in factors.values())
    return {
        "path": str(out),
        "rank": rank,
        "num_layers": len(ranks),
        "largest_error": error,
        "is_truncated": any(found.is_cut for found in factors.values()),
        "vllm_max_lora_rank": next((one for one in VLLM_RANKS if one >= rank), None),
        "errors": {param.module_name: factors[param.name].error for param in chosen},
    }


def _config(plan: LoadPlan, params: Sequence[InnerParam], ranks: Mapping[str, int], base_name: str) -> dict[str, Any]:
    rank = max(ranks.values())
    # A key is a pattern that ends a module's name. alpha / r is 1 everywhere.
    others = {name: one for name, one in ranks.items() if one != rank}
    return {
        "peft_type": "LORA",
        "task_type": TASKS[plan.base.task],
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": [param.module_name for param in params],
        "fan_in_fan_out": params[0].fan_in_fan_out,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _edited_layers(plan: LoadPlan) -> tuple[InnerParam, ...]:
    """Return the edited layers of the base, from its configuration alone."""
    try:
        config = AutoConfig.from_pretrained(plan.base.ref, local_files_only=True)
        with torch.device("meta"):
            module = family_of(plan.base.task).loader.from_config(config)
    except UNREADABLE as error:
        raise Misconfigured(f"expected a model that transformers can build in {plan.base.ref}, got: {error}") from error
    return inner_params(module, plan.editor.inner_params)


def _shifts(plan: LoadPlan, params: Sequence[InnerParam]) -> dict[str, Tensor]:
    """Return the change of each weight, I x O, summed in double precision."""
    accumulator = plan.accumulator
    found = load_accumulators(Path(accumulator.path), accumulator.digest) if accumulator else {}
    shifts = {
        param.name: found[param.name].double()
        if param.name in found
        else torch.zeros(param.in_features, param.out_features, dtype=torch.float64)
        for param in params
    }
    for delta in plan.deltas:
        for name, (left_IR, right_RO) in WeightDelta.load(Path(delta.path), delta.digest).factors.items():
            shifts[name] = shifts[name] + left_IR.double() @ right_RO.double()
    return shifts


def main(file: str) -> int:
    """Write what a file asks for; return 1 after one sentence on standard error if it cannot be had."""
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        plan = TypeAdapter(LoadPlan).validate_python(asked["plan"])
        written = write_adapter(
            plan, Path(asked["out"]), base_name=asked.get("base_name", ""), max_rank=asked.get("max_rank")
        )
    except CorrigendaError as error:
        print(one_line(error), file=sys.stderr)
        return 1
    print(json.dumps(written))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
