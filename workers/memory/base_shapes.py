"""Shapes of a base and of the weights that are edited in it, from its config on torch's meta device.

No weight is read: a plan for a base of hundreds of gigabytes takes seconds.

Legend: I in_features, O out_features, V vocabulary or labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from editors.mend.checkpoint import TrainedEditor
from editors.methods.select import lineage_settings
from editors.models.declared_task import declared_task
from editors.models.families import family_of
from editors.models.inner_params import InnerParam, block_lists, default_subject_params, inner_params
from editors.weights.loading import UNREADABLE
from pipeline.domain.errors import Misconfigured


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseShapes:
    """How large a base and its inner parameters are."""

    task: str
    """`causal`, `seq2seq` or `classifier`."""
    dtype: torch.dtype
    """Type in which the weights are stored, and in which the base computes."""
    numels: tuple[int, ...]
    """Elements of each parameter; tied weights count once."""
    largest_block: int
    """Elements of the largest transformer block."""
    hidden: int
    """Width of the states between blocks."""
    widest: int
    """Width of the widest layer inside a block."""
    vocabulary: int
    """V: tokens, or labels of a classifier."""
    num_kept: int
    """Numbers that attention keeps of a token, in all blocks of a decoder; 0 for other models."""
    num_graph_blocks: int
    """Blocks that the backward pass goes through: from the first edited one on, in its stack and in those after it."""
    inner: tuple[InnerParam, ...]
    """The weights that are edited."""
    subject_params: tuple[str, ...]
    """Names of those inner parameters whose edit rows are subject tokens."""
    num_editor_params: int
    """Elements of the trained editor's network; 0 without one."""

    @property
    def total(self) -> int:
        """Elements of the whole base."""
        return sum(self.numels)


def read_shapes(
    folder: Path, *, task: str | None = None, editor: Path | None = None, inner_param_names: Sequence[str] = ()
) -> BaseShapes:
    """Return the shapes of the base in a folder.

    Args:
        folder: of the base; only its config is read.
        task: of the base; what its config declares if None.
        editor: folder of a trained editor, which names the weights that it edits.
        inner_param_names: weights to edit; the architecture's default when there are none and no editor.

    Raises:
        Misconfigured: if the folder holds no model of the task, the architecture is unknown, there is no such inner
            parameter, or the editor is for another base.
        IntegrityBroken: if the editor is damaged.
    """
    if not folder.is_dir():
        raise Misconfigured(f"expected a folder with a model, got {folder}")
    task = task or declared_task(folder)
    module, dtype = _on_meta(folder, task)
    names, num_editor_params = tuple(inner_param_names), 0
    of_subject: tuple[str, ...] = ()
    if editor is not None:
        trained = TrainedEditor.load(editor)
        settings = lineage_settings(trained, task=task)
        names, of_subject = settings.inner_params, settings.subject_params
        num_editor_params = sum(tensor.numel() for tensor in trained.transform.parameters())
    inner = inner_params(module, names)
    if editor is not None:
        _require_fit(inner, trained, editor)
    elif not names:
        of_subject = default_subject_params(module)
    stacks = block_lists(module)
    config: Any = module.config
    head = module.get_output_embeddings()  # type: ignore[operator]
    return BaseShapes(
        task=task,
        dtype=dtype,
        numels=tuple(parameter.numel() for parameter in module.parameters()),
        largest_block=max(_elements(block) for stack in stacks.values() for block in stack),
        hidden=int(getattr(config, "hidden_size", 0) or max(param.out_features for param in inner)),
        widest=max(max(parameter.shape) for parameter in stacks[inner[0].blocks_name].parameters()),
        vocabulary=int(config.num_labels if head is None else head.weight.shape[0]),
        num_kept=_num_kept(config) if task == "causal" else 0,
        num_graph_blocks=_num_graph_blocks(stacks, inner[0]),
        inner=inner,
        subject_params=of_subject,
        num_editor_params=num_editor_params,
    )


def _on_meta(folder: Path, task: str) -> tuple[nn.Module, torch.dtype]:
    """Return the module without storage, and the dtype in which its weights are stored."""
    loader = family_of(task).loader
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            module: nn.Module = loader.from_config(config)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise Misconfigured(f"expected a {task} model that transformers knows in {folder}, got: {reason}") from error
    return module, config.dtype or torch.float32


def _require_fit(inner: Sequence[InnerParam], trained: TrainedEditor, editor: Path) -> None:
    """Refuse an editor whose network has other shapes. Its base's digest is not compared: that reads every weight."""
    known = {name: (width, height) for name, width, height in trained.card.shapes}
    for param in inner:
        found = param.in_features, param.out_features
        if known.get(param.name, found) != found:
            raise Misconfigured(
                f"expected {param.name} to have the shape {known[param.name]} of the editor in {editor}, "
                f"got {found}: the editor is for another base"
            )


def _num_kept(config: Any) -> int:
    """Return how many numbers of keys and values there are of a token; a type that does not say has all heads."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * int(config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * size)


def _num_graph_blocks(stacks: dict[str, nn.ModuleList], first: InnerParam) -> int:
    names = list(stacks)
    later = names[names.index(first.blocks_name) + 1 :]
    return len(stacks[first.blocks_name]) - first.block + sum(len(stacks[name]) for name in later)


def _elements(module: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in module.parameters())
