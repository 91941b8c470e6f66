"""The model that ranks hold, written as a folder that transformers reads.

`save_pretrained` would need the whole model in one process. Here one parameter at a time is gathered, and rank 0 keeps
the parameters of one file; `huggingface_hub` says which parameters a file holds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from editors.data.atomic_files import partial_of, replace_folder
from editors.models.digest import base_digest
from editors.models.inner_params import true_shape
from pipeline.domain.errors import InvalidInput
from pipeline.domain.rank_api import ExportedModel
from workers.rank.sharded_model import ShardedModel

FILE_BYTES = 512 * 2**20
"""Most bytes of a safetensors file, unless a single parameter is larger."""


def require_free(folder: Path) -> None:
    """Refuse a folder for a model that holds something already.

    Raises:
        InvalidInput: naming it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"expected a new or empty folder for a model, got {folder}")


def export_model(model: ShardedModel, folder: Path, *, is_writer: bool, file_bytes: int = FILE_BYTES) -> None:
    """Write weights, configuration and tokenizer. The folder appears whole or not at all. Every rank has to call.

    Args:
        model: as it is now.
        folder: new or empty.
        is_writer: whether this rank writes.
        file_bytes: most bytes of a file.
    """
    partial = partial_of(folder)
    if not is_writer:
        _write(model, partial, is_writer=False, file_bytes=file_bytes)
        return
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(model, partial, is_writer=True, file_bytes=file_bytes)
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def described(folder: Path) -> ExportedModel:
    """Return where a model was written, and what it is."""
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return ExportedModel(path=str(folder), digest=base_digest(folder), num_bytes=num_bytes)


def _write(model: ShardedModel, folder: Path, *, is_writer: bool, file_bytes: int) -> None:
    stored = _stored(model)
    split = split_state_dict_into_shards_factory(
        stored, get_storage_size=_size, filename_pattern="model{suffix}.safetensors", max_shard_size=file_bytes
    )
    if is_writer:
        folder.mkdir(parents=True)
    for name, keys in split.filename_to_tensors.items():
        gathered = {key: _whole(model, stored[key], is_writer=is_writer) for key in keys}
        if is_writer:
            save_file(gathered, folder / name, metadata={"format": "pt"})
            (folder / name).chmod(0o644)  # the library makes files that only their owner may read
    model.release()
    if is_writer:
        _write_rest(model, folder)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _stored(model: ShardedModel) -> dict[str, Any]:
    """Return parameters and buffers of the model's state by name, a tied weight once."""
    found: dict[int, tuple[str, Any]] = {}
    for name, value in model.module.state_dict(keep_vars=True).items():
        found.setdefault(id(value), (name, value))
    return dict(found.values())


def _size(value: Any) -> int:
    size: int = torch.Size(true_shape(value)).numel() * value.element_size()
    return size


def _whole(model: ShardedModel, value: Any, *, is_writer: bool) -> Tensor:
    """Return a whole parameter or buffer, on the CPU of the rank that writes; every rank has to call."""
    if model.is_resident or not hasattr(value, "ds_tensor"):
        whole: Tensor = value.detach()
        return whole.cpu().clone() if is_writer else whole
    with deepspeed.zero.GatheredParameters([value]):
        return value.detach().cpu().clone() if is_writer else torch.empty(0)


def _write_rest(model: ShardedModel, folder: Path) -> None:
    """Write everything beside the weights."""
    module: Any = model.module
    module.config.save_pretrained(folder)
    if getattr(module, "generation_config", None) is not None:
        module.generation_config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
