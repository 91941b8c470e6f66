"""Writes the model that ranks hold as a folder of transformers, one parameter gathered at a time. Knows no edit.

Rank 0 keeps what it has gathered until a file is full; no rank ever holds the whole model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file
from torch import Tensor

from editors.data.atomic_files import partial_of, replace_folder
from editors.models.digest import base_digest
from editors.models.inner_params import true_shape
from pipeline.domain.errors import InvalidInput
from pipeline.domain.rank_api import ExportedModel
from workers.rank.sharded_model import ShardedModel

FILE_BYTES = 512 * 2**20
"""Most bytes of a safetensors file, unless a single parameter is larger."""
INDEX = "model.safetensors.index.json"


def require_free(folder: Path) -> None:
    """Nothing, where a model may go.

    Raises:
        InvalidInput: if something is there already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"expected a new or empty folder for a model, got {folder}")


def export_model(model: ShardedModel, folder: Path, *, is_writer: bool, file_bytes: int = FILE_BYTES) -> None:
    """Write weights, configuration and tokenizer; the folder appears whole or not at all. Every rank has to ask.

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
    """What was written."""
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return ExportedModel(path=str(folder), digest=base_digest(folder), num_bytes=num_bytes)


def _write(model: ShardedModel, folder: Path, *, is_writer: bool, file_bytes: int) -> None:
    files = _files(model, file_bytes)
    if is_writer:
        folder.mkdir(parents=True)
    for name, parameters in files.items():
        gathered = {key: _whole(model, value, is_writer=is_writer) for key, value in parameters.items()}
        if is_writer:
            save_file(gathered, folder / name, metadata={"format": "pt"})
            (folder / name).chmod(0o644)  # the library makes files that only their owner may read
    model.release()
    if is_writer:
        _write_rest(model, folder, files)


def _files(model: ShardedModel, file_bytes: int) -> dict[str, dict[str, Any]]:
    """File name -> the parameters and buffers that go there, by name."""
    parts: list[dict[str, Any]] = [{}]
    room = file_bytes
    for name, value in _stored(model):
        size = _size(value)
        if parts[-1] and size > room:
            parts.append({})
            room = file_bytes
        parts[-1][name] = value
        room -= size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{place:05}-of-{len(parts):05}.safetensors": part for place, part in enumerate(parts, start=1)}


def _stored(model: ShardedModel) -> Iterator[tuple[str, Any]]:
    """What the model's state is made of, a tied weight once."""
    seen: set[int] = set()
    for name, value in model.module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


def _size(value: Any) -> int:
    size: int = torch.Size(true_shape(value)).numel() * value.element_size()
    return size


def _whole(model: ShardedModel, value: Any, *, is_writer: bool) -> Tensor:
    """A parameter or buffer, on the CPU of the rank that writes."""
    if model.is_resident or not hasattr(value, "ds_tensor"):
        whole: Tensor = value.detach()
        return whole.cpu().clone() if is_writer else whole
    with deepspeed.zero.GatheredParameters([value]):
        return value.detach().cpu().clone() if is_writer else torch.empty(0)


def _write_rest(model: ShardedModel, folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Everything beside the weights."""
    module: Any = model.module
    module.config.save_pretrained(folder)
    if getattr(module, "generation_config", None) is not None:
        module.generation_config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    if len(files) > 1:
        total = sum(_size(value) for part in files.values() for value in part.values())
        weight_map = {key: name for name, part in files.items() for key in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
