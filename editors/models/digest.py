"""Knows the digest of a base model's folder: its weights by name and what its tokenizer is. Loads no model.

The digest is over names, dtypes, shapes and bytes of the tensors in name order, so that neither the split into files
nor the order inside them matters, and over the tokenizer's files. `config.json` carries versions and paths that change
with the library that wrote it, and is left out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    """SHA-256 (hex) of the model in a folder.

    Raises:
        Misconfigured: if the folder holds no safetensors weights.
    """
    return sha256_blocks(_blocks(folder))


def _blocks(folder: Path) -> Iterator[bytes]:
    """Return what the digest is of: every tensor by name, then the files of the tokenizer."""
    stored = _stored_tensors(folder)
    for name in sorted(stored):
        yield f"{name}\n{stored[name].described}\n".encode()
        yield from _content(stored[name])
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            content = path.read_bytes()
            yield f"{name}\n{len(content)}\n".encode()
            yield content


def _stored_tensors(folder: Path) -> dict[str, _Stored]:
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise Misconfigured(f"expected a model with *.safetensors in {folder}, found none")
    found: dict[str, _Stored] = {}
    for path in files:
        found |= _header(path)
    return found


def _header(path: Path) -> dict[str, _Stored]:
    with path.open("rb") as file:
        try:
            (size,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(size))
            return {
                name: _Stored(
                    path=path,
                    start=8 + size + entry["data_offsets"][0],
                    length=entry["data_offsets"][1] - entry["data_offsets"][0],
                    described=f"{entry['dtype']} {entry['shape']}",
                )
                for name, entry in entries.items()
                if name != "__metadata__"
            }
        except (struct.error, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise Misconfigured(f"expected a safetensors file at {path}, got something else: {error!r}") from error


def _content(stored: _Stored) -> Iterator[bytes]:
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        left = stored.length
        while left > 0:
            block = file.read(min(left, BLOCK_BYTES))
            if not block:
                raise Misconfigured(f"expected {stored.length} bytes of a tensor in {stored.path}, the file is cut")
            yield block
            left -= len(block)
