"""Knows which weights of a model are edited, what they are called and how they lie. Knows no prompt and no gradient.

Legend: I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from pipeline.domain.errors import Misconfigured

MLP_OUTPUT = {
    "gpt2": "transformer.h.{i}.mlp.c_proj.weight",
    "gpt_neo": "transformer.h.{i}.mlp.c_proj.weight",
    "gpt_neox": "gpt_neox.layers.{i}.mlp.dense_4h_to_h.weight",
    "gptj": "transformer.h.{i}.mlp.fc_out.weight",
    "llama": "model.layers.{i}.mlp.down_proj.weight",
    "mistral": "model.layers.{i}.mlp.down_proj.weight",
    "qwen2": "model.layers.{i}.mlp.down_proj.weight",
    "qwen3": "model.layers.{i}.mlp.down_proj.weight",
}
"""Model type of a Hugging Face config -> the weight that writes an MLP's result back, by block."""

MEASURED_FIRST, MEASURED_DEPTH, NUM_BLOCKS = 22, 30, 3
"""Blocks 22, 23 and 24 of 30 were measured best on SmolLM2-135M; other depths take the same relative place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerParam:
    """One weight that is edited, `y = x W^T` (Linear) or `y = x W` (Conv1D)."""

    name: str
    """As in `named_parameters()`."""
    module_name: str
    """The layer that owns it."""
    in_features: int
    """I."""
    out_features: int
    """O."""
    fan_in_fan_out: bool
    """Whether the weight lies I x O (Conv1D); a Linear's lies O x I."""
    blocks_name: str
    """The list of transformer blocks that the layer is in."""
    block: int
    """Place of the layer's block in that list, from 0."""


def true_shape(param: Any) -> tuple[int, ...]:
    """The shape of a parameter, whole or partitioned by ZeRO-3 (whose own `.shape` is `[0]`)."""
    return tuple(getattr(param, "ds_shape", param.shape))


def default_inner_params(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights to edit when nobody chose any: three consecutive MLP output matrices.

    Raises:
        Misconfigured: if the architecture is not in the registry.
    """
    config: Any = model.config
    pattern = MLP_OUTPUT.get(config.model_type)
    if pattern is None:
        known = ", ".join(sorted(MLP_OUTPUT))
        raise Misconfigured(
            f"expected a model type with known inner parameters ({known}) or explicit names, got {config.model_type!r}"
        )
    depth = int(config.num_hidden_layers)
    first = min(round(depth * MEASURED_FIRST / MEASURED_DEPTH), max(depth - NUM_BLOCKS, 0))
    return tuple(pattern.format(i=index) for index in range(first, min(first + NUM_BLOCKS, depth)))


def inner_params(model: nn.Module, names: Sequence[str] = ()) -> tuple[InnerParam, ...]:
    """Resolve names, or the defaults when there are none, in block order.

    Raises:
        Misconfigured: for a name that is no weight of a Linear or Conv1D inside one list of blocks.
    """
    chosen = tuple(names) or default_inner_params(model)
    if len(set(chosen)) != len(chosen):
        raise Misconfigured(f"expected each inner parameter once, got {', '.join(chosen)}")
    found = sorted((_resolve(model, name) for name in chosen), key=lambda param: (param.block, param.name))
    if len({param.blocks_name for param in found}) != 1:
        raise Misconfigured(f"expected inner parameters of one list of blocks, got {', '.join(chosen)}")
    return tuple(found)


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
    """The outermost ModuleList on the way to a weight, and the index taken in it."""
    steps = name.split(".")
    for end in range(1, len(steps) - 1):
        if isinstance(model.get_submodule(".".join(steps[:end])), nn.ModuleList):
            return ".".join(steps[:end]), int(steps[end])
    raise Misconfigured(f"expected a weight inside a list of transformer blocks, got {name!r}")
