"""The weights of a model that are edited: which ones by default, their names, shapes and places.

Defaults come from a registry of patterns by model type. A model of another type needs the names of its weights.

Legend: I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from pipeline.domain.errors import Misconfigured

MEASURED_FIRST, MEASURED_DEPTH, NUM_BLOCKS = 22, 30, 3
"""Blocks 22, 23 and 24 of 30 were measured best for answer tokens on SmolLM2-135M; other depths take the same place."""
SUBJECT_FIRST, SUBJECT_END = 3, 11
"""Blocks 3 to 10 of 30 were measured best for subject tokens on the same model (DECISIONS.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """One list of transformer blocks, and which weights of it are edited when nobody chose any."""

    pattern: str
    """Name of the weight that writes an MLP's result back, with `{i}` for the number of the block."""
    num_last: int | None = None
    """How many of the last blocks are edited, as in MEND; None for three blocks at the measured depth."""

    @property
    def blocks_name(self) -> str:
        """Name of the list of blocks in the model."""
        return self.pattern.partition(".{i}.")[0]

    def names(self, depth: int) -> tuple[str, ...]:
        """Return the names of the weights to edit in a stack of `depth` blocks."""
        count = self.num_last or NUM_BLOCKS
        last = max(depth - count, 0)
        first = last if self.num_last else min(round(depth * MEASURED_FIRST / MEASURED_DEPTH), last)
        return tuple(self.pattern.format(i=index) for index in range(first, min(first + count, depth)))

    def subject_names(self, depth: int) -> tuple[str, ...]:
        """Return the weights to edit at subject tokens: none in the stacks of which MEND edits the last blocks."""
        if self.num_last or depth < 2:
            return ()
        first, end = (round(depth * block / MEASURED_DEPTH) for block in (SUBJECT_FIRST, SUBJECT_END))
        return tuple(self.pattern.format(i=index) for index in range(first, max(end, first + 1)))


T5_STACKS = (
    Stack(pattern="encoder.block.{i}.layer.1.DenseReluDense.wo.weight", num_last=2),
    Stack(pattern="decoder.block.{i}.layer.2.DenseReluDense.wo.weight", num_last=2),
)
LLAMA_STACKS = (Stack(pattern="model.layers.{i}.mlp.down_proj.weight"),)

REGISTRY: dict[str, tuple[Stack, ...]] = {
    "bart": (
        Stack(pattern="model.encoder.layers.{i}.fc2.weight", num_last=2),
        Stack(pattern="model.decoder.layers.{i}.fc2.weight", num_last=2),
    ),
    "bert": (Stack(pattern="bert.encoder.layer.{i}.output.dense.weight", num_last=3),),
    "gpt2": (Stack(pattern="transformer.h.{i}.mlp.c_proj.weight"),),
    "gpt_neo": (Stack(pattern="transformer.h.{i}.mlp.c_proj.weight"),),
    "gpt_neox": (Stack(pattern="gpt_neox.layers.{i}.mlp.dense_4h_to_h.weight"),),
    "gptj": (Stack(pattern="transformer.h.{i}.mlp.fc_out.weight"),),
    "llama": LLAMA_STACKS,
    "mistral": LLAMA_STACKS,
    "mt5": T5_STACKS,
    "qwen2": LLAMA_STACKS,
    "qwen3": LLAMA_STACKS,
    "t5": T5_STACKS,
}
"""Model type in a Hugging Face config -> the stacks of its models, in the order in which they run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerParam:
    """A weight that may be edited, of a layer that computes `y = x W^T` (Linear) or `y = x W` (Conv1D)."""

    name: str
    """Name of the weight, as in `named_parameters()`."""
    module_name: str
    """Name of the layer that owns the weight."""
    in_features: int
    """Width of the layer's input, I."""
    out_features: int
    """Width of the layer's output, O."""
    fan_in_fan_out: bool
    """Whether the weight is stored as I x O (Conv1D); a Linear's is O x I."""
    blocks_name: str
    """Name of the list of transformer blocks that the layer is in."""
    block: int
    """Number of the layer's block in that list, from 0."""


def true_shape(param: Any) -> tuple[int, ...]:
    """Return the whole shape of a parameter, also where ZeRO-3 has partitioned it and its `.shape` is `[0]`."""
    return tuple(getattr(param, "ds_shape", param.shape))


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the outermost lists of transformer blocks by name, in the order in which they run."""
    found: dict[str, nn.ModuleList] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = part
    return found


def default_inner_params(model: nn.Module) -> tuple[str, ...]:
    """Return the weights to edit when nobody chose any: the MLPs' output matrices in some blocks of every stack.

    Raises:
        Misconfigured: if the architecture is not in the registry.
    """
    names = [name for stack in stacks_of(model) for name in stack.names(_depth(model, stack))]
    return tuple(dict.fromkeys((*default_subject_params(model), *names)))


def default_subject_params(model: nn.Module) -> tuple[str, ...]:
    """Return those of the default inner parameters whose edit rows are subject tokens."""
    return tuple(name for stack in stacks_of(model) for name in stack.subject_names(_depth(model, stack)))


def stacks_of(model: nn.Module) -> tuple[Stack, ...]:
    """Return the stacks of the model's type.

    Raises:
        Misconfigured: if the architecture is not in the registry.
    """
    config: Any = model.config
    stacks = REGISTRY.get(config.model_type)
    if stacks is None:
        known = ", ".join(sorted(REGISTRY))
        raise Misconfigured(
            f"expected a model type with known inner parameters ({known}) or explicit names, got {config.model_type!r}"
        )
    return stacks


def inner_params(model: nn.Module, names: Sequence[str] = ()) -> tuple[InnerParam, ...]:
    """Find weights by name, or the default ones, and return them in the order in which they run.

    Raises:
        Misconfigured: for a name that is no weight of a Linear or Conv1D inside a list of blocks.
    """
    chosen = tuple(names) or default_inner_params(model)
    if len(set(chosen)) != len(chosen):
        raise Misconfigured(f"expected each inner parameter once, got {', '.join(chosen)}")
    place = {name: index for index, (name, _) in enumerate(model.named_modules())}
    found = [_resolve(model, name) for name in chosen]
    return tuple(sorted(found, key=lambda param: (place[param.blocks_name], param.block, param.name)))


def _depth(model: nn.Module, stack: Stack) -> int:
    try:
        blocks = model.get_submodule(stack.blocks_name)
    except AttributeError:
        raise Misconfigured(
            f"expected blocks at {stack.blocks_name} of the model, got a {type(model).__name__} without"
        ) from None
    assert isinstance(blocks, nn.ModuleList)
    return len(blocks)


def _resolve(model: nn.Module, name: str) -> InnerParam:
    module_name, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(module_name)
    except AttributeError:
        raise Misconfigured(f"expected a weight of the model, got {name!r}, which it does not have") from None
    if leaf != "weight" or not isinstance(module, nn.Linear | Conv1D):
        raise Misconfigured(f"expected the weight of a Linear or Conv1D layer, got {name!r}")
    fan_in_fan_out = isinstance(module, Conv1D)
    shape = true_shape(module.weight)
    blocks_name, block = _place(model, name)
    return InnerParam(
        name=name,
        module_name=module_name,
        in_features=shape[0] if fan_in_fan_out else shape[1],
        out_features=shape[1] if fan_in_fan_out else shape[0],
        fan_in_fan_out=fan_in_fan_out,
        blocks_name=blocks_name,
        block=block,
    )


def _place(model: nn.Module, name: str) -> tuple[str, int]:
    """Return the outermost list of blocks that a weight is in, and the number of its block."""
    steps = name.split(".")
    for end in range(1, len(steps) - 1):
        if isinstance(model.get_submodule(".".join(steps[:end])), nn.ModuleList):
            return ".".join(steps[:end]), int(steps[end])
    raise Misconfigured(f"expected a weight inside a list of transformer blocks, got {name!r}")
