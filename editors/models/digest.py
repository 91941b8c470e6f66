"""The digest of a base model's folder: SHA-256 over its weights and its tokenizer. Needs no torch.

Tensors are taken in the order of their names, each with dtype, shape and bytes, so that neither the split into files
nor the order inside them matters. `config.json` carries versions and paths that change with the library that wrote it,
and is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.domain.canonical import sha256_blocks
from pipeline.domain.errors import Misconfigured

TOKENIZER_FILES = (
    "chat_template.jinja",
    "merges.txt",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
BLOCK_BYTES = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    path: Path
    start: int
    length: int
    described: str


def base_digest(folder: Path) -> str:
    """Return the digest of the model in a folder, lower-case hex.

    Raises:
        Misconfigured: if the folder holds no safetensors weights, or a damaged file.
    """
    return sha256_blocks(_blocks(folder))


def _blocks(folder: Path) -> Iterator[bytes]:
    """Return what the digest is of: every tensor by name, then the files of the tokenizer."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise Misconfigured(f"expected a model with *.safetensors in {folder}, found none")
    stored = {name: tensor for path in files for name, tensor in _tensors(path)}
    for name in sorted(stored):
        yield f"{name}\n{stored[name].described}\n".encode()
        yield from _content(stored[name])
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            content = path.read_bytes()
            yield f"{name}\n{len(content)}\n".encode()
            yield content


def _tensors(path: Path) -> Iterator[tuple[str, _Stored]]:
    try:
        with safe_open(path, framework="np") as file:  # reads no tensor, and checks that all of them are there
            slices = [(name, file.get_slice(name)) for name in file.offset_keys()]
            found = [(name, part.get_dtype(), part.get_shape()) for name, part in slices]
    except SafetensorError as error:
        raise Misconfigured(f"expected a safetensors file at {path}, got something else: {error}") from error
    # NumPy has no bfloat16, so the bytes are read from the file. The format allows no gaps: the tensors fill its end,
    # in the order of their offsets.
    lengths = [math.prod(shape) * _num_bits(dtype) // 8 for _, dtype, shape in found]
    start = path.stat().st_size - sum(lengths)
    for (name, dtype, shape), length in zip(found, lengths, strict=True):
        yield name, _Stored(path=path, start=start, length=length, described=f"{dtype} {shape}")
        start += length


def _num_bits(dtype: str) -> int:
    """Return the bits of an element: the number in the format's own name of the dtype; BOOL has none and takes 8."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8


def _content(stored: _Stored) -> Iterator[bytes]:
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        left = stored.length
        while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
            yield block
            left -= len(block)
