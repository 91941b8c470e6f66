"""Canonical JSON and digests: the only place where anything is hashed. A digest is lower-case hexadecimal SHA-256."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rfc8785

from pipeline.domain.errors import InvalidInput

LARGEST_INTEGER = 2**53 - 1
"""The largest integer that RFC 8785 writes."""

_plain_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, check_circular=False).encode


def canonical_json(value: Any) -> str:
    """Return the RFC 8785 text of a JSON value.

    Raises:
        InvalidInput: if the value has no canonical form (NaN, an integer above 2^53, a lone surrogate).
    """
    try:
        # The standard library's encoder is in C, ten times as fast, and writes the same text of most values.
        text = _plain_json(value) if _is_plain(value) else rfc8785.dumps(value).decode("utf-8")
        text.encode("utf-8")  # only what has no lone surrogate can be encoded
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise InvalidInput(f"expected a value with a canonical JSON form, got one without: {error}") from error
    return text


def finite(value: Any) -> Any:
    """Return a value with None in the place of numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_plain(value: Any) -> bool:
    """Return whether `json` writes a value as RFC 8785 does.

    It writes other numbers than integers in another form, and sorts names by code points instead of UTF-16; names in
    ASCII are sorted alike.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is dict:
        return all(type(name) is str and name.isascii() and _is_plain(item) for name, item in value.items())
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))
    return kind is int and abs(value) <= LARGEST_INTEGER


def sha256_bytes(content: bytes) -> str:
    """Return the digest of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_blocks(blocks: Iterable[bytes]) -> str:
    """Return the digest of blocks of bytes as if they were joined, holding one at a time."""
    total = hashlib.sha256()
    for block in blocks:
        total.update(block)
    return total.hexdigest()


def sha256_text(text: str) -> str:
    """Return the digest of a text's UTF-8 bytes."""
    return sha256_bytes(text.encode("utf-8"))


def sha256_json(value: Any) -> str:
    """Return the digest of the canonical JSON of a value, and raise what `canonical_json` raises."""
    return sha256_text(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Return the digest of a file's bytes, read in blocks; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
