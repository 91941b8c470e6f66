"""Files of tensors with one line of facts, in the safetensors format: equal content gives equal bytes.

    digest = write_tensors(path, {"K": [first_TI, second_TI]}, {"kind": "rows"})
    tensors, facts = read_tensors(path, "rows", digest)

They are written tensor by tensor, so that a file takes no memory beside what it is made of: the library itself copies
all of them first. Its bytes are the same (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.formats.canonical import canonical_json, sha256_file

FORMAT = "corrigenda.1"
KINDS = {
    **{torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32"},
    **{torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"},
}
"""The format's names of types, in the order in which the library writes tensors, so that wide numbers are aligned."""
ALIGNMENT = 8
"""Bytes; the header is padded to a multiple of it."""

Parts = Tensor | Sequence[Tensor]
"""A tensor, or parts of one that follow each other; at least one, all of one type and alike but for their length."""


def tensor_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """Return a safetensors file of sorted names and one canonical line of facts; equal content gives equal bytes."""
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return bytes(save(ordered, metadata={"facts": _line(facts)}))


def write_tensors(path: Path, tensors: Mapping[str, Parts], facts: Mapping[str, Any]) -> str:
    """Write the bytes that `tensor_bytes` would return, of tensors that may be in parts; return the file's SHA-256."""
    parts = {name: [given] if isinstance(given, Tensor) else given for name, given in tensors.items()}
    kinds = list(KINDS)
    names = sorted(parts, key=lambda name: (kinds.index(parts[name][0].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"facts": _line(facts)}}
    end = 0
    for name in names:
        first = parts[name][0]
        shape = [sum(map(len, parts[name])), *first.shape[1:]] if first.dim() else []
        start, end = end, end + sum(part.nbytes for part in parts[name])
        header[name] = {"dtype": KINDS[first.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for data in (len(text).to_bytes(ALIGNMENT, "little"), text):
            file.write(data)
            sha256.update(data)
        for part in (part for name in names for part in parts[name]):
            # Bytes are all alike to numpy, which has no bfloat16.
            data_of = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(data_of)
            sha256.update(data_of)
    return sha256.hexdigest()


def read_tensors(path: Path, kind: str, expected_digest: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and facts of a file that `write_tensors` has written.

    Raises:
        IntegrityBroken: if the file is missing, is of another kind, or has another digest than expected.
    """
    if not path.is_file():
        raise IntegrityBroken(f"expected the {kind} file {path}, got nothing there")
    if expected_digest is not None and (digest := sha256_file(path)) != expected_digest:
        raise IntegrityBroken(f"expected digest {expected_digest} of the {kind} file {path}, got {digest}")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise IntegrityBroken(f"expected a safetensors file of kind {kind} at {path}, got: {error}") from error
    if facts.get("kind") != kind or facts.get("format") != FORMAT:
        raise IntegrityBroken(f"expected a {kind} file at {path}, got kind {facts.get('kind')!r}")
    return tensors, facts


def _line(facts: Mapping[str, Any]) -> str:
    return canonical_json({"format": FORMAT, **facts})
