"""The digest of a base model's folder: SHA-256 over everything that changes what it answers. Needs no torch.

Tensors are taken in the order of their names, each with dtype, shape and bytes, so that neither the split into files
nor the order inside them matters. Configurations are taken as values, in whatever order and layout they were written,
without the versions and paths that change with the library that wrote them. Files of the tokenizer are taken as they
are.

Digests of before left configurations out. They are still known by (`BaseDigest.before`): a lineage or an editor that
was made with one goes on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.domain.errors import Misconfigured, WrongBase
from pipeline.domain.formats.canonical import sha256_blocks, sha256_json, sha256_text
from pipeline.domain.rank_api import BaseSpec

TOKENIZER_FILES = (
    "chat_template.jinja",
    "merges.txt",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
SAYS_NOTHING = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_from_model_config", "_name_or_path", "architectures",
        "backend", "is_local", "local_files_only", "name_or_path", "processor_class", "special_tokens_map_file",
        "tokenizer_file", "torchscript", "transformers_version", "use_cache",
    }
)  # fmt: skip
"""Fields that change with the library and the folder, and leave every answer as it is."""
EXACT_DIGITS = 15
"""Longer integers, such as the greatest length of a tokenizer without one, have no canonical form and become text."""
BLOCK_BYTES = 2**24


class BaseDigest(str):
    """The digest of a base, which is a plain text everywhere else, with the parts that it was made of."""

    before: str
    """SHA-256 over weights and tokenizer alone, as digests were made before."""
    config: str
    """SHA-256 over the configurations."""

    @classmethod
    def of(cls, *, before: str, config: str) -> BaseDigest:
        """Return the digest that two parts make."""
        made = cls(sha256_text(f"{before}\n{config}"))
        made.before, made.config = before, config
        return made


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    path: Path
    start: int
    length: int
    described: str


def base_digest(folder: Path) -> BaseDigest:
    """Return the digest of the model in a folder, lower-case hex.

    Raises:
        Misconfigured: if the folder holds no safetensors weights, or a damaged file.
    """
    return BaseDigest.of(before=sha256_blocks(_blocks(folder)), config=sha256_json(_configurations(folder)))


def names_base(recorded: str, found: str) -> bool:
    """Return whether a recorded digest, perhaps one of before, is that of a base."""
    return recorded in (found, getattr(found, "before", found))


def require_base(base: BaseSpec, found: BaseDigest) -> None:
    """Refuse a base that is another than the one that was named.

    Of a lineage whose digest is one of before, the configurations are compared too, once they were recorded.

    Raises:
        WrongBase: with both digests.
    """
    if not names_base(base.digest, found):
        raise WrongBase(f"expected a base model with the digest {base.digest}, got {found} in {base.ref}")
    if base.digest != found and base.config_digest not in (None, found.config):
        raise WrongBase(
            f"expected configurations with the digest {base.config_digest} beside the weights, got {found.config} in "
            f"{base.ref}"
        )


def config_to_record(base: BaseSpec, found: BaseDigest) -> str | None:
    """Return the digest of configurations that is still to be recorded for a lineage whose digest is one of before."""
    return found.config if base.digest != found and base.config_digest is None else None


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


def _configurations(folder: Path) -> dict[str, Any]:
    paths = (folder / name for name in CONFIGURATIONS)
    return {path.name: _telling(_read(path)) for path in paths if path.is_file()}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes(), parse_int=_exact, parse_constant=str)
    except ValueError as error:
        raise Misconfigured(f"expected JSON at {path}, got something else: {error}") from error


def _exact(digits: str) -> int | str:
    return int(digits) if len(digits) <= EXACT_DIGITS else digits


def _telling(value: Any) -> Any:
    """Return a configuration without the fields that say nothing; the dtype has had two names."""
    if isinstance(value, list):
        return [_telling(one) for one in value]
    if not isinstance(value, dict):
        return value
    told = {"dtype" if name == "torch_dtype" else name: one for name, one in value.items() if name not in SAYS_NOTHING}
    return {name: _telling(one) for name, one in told.items() if one is not None}


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
