"""Canonical JSON and digests: the one way anything here is hashed. Knows no record of ours."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import rfc8785

from pipeline.domain.errors import InvalidInput


def canonical_json(value: Any) -> str:
    """RFC 8785 text of a JSON value.

    Raises:
        InvalidInput: if the value has no canonical form (NaN, an integer above 2^53, a lone surrogate).
    """
    try:
        return rfc8785.dumps(value).decode("utf-8")
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise InvalidInput(f"expected a value with a canonical JSON form, got one without: {error}") from error


def sha256_bytes(content: bytes) -> str:
    """Lower-case hex SHA-256."""
    return hashlib.sha256(content).hexdigest()


def sha256_text(text: str) -> str:
    """Lower-case hex SHA-256 of the UTF-8 bytes of `text`."""
    return sha256_bytes(text.encode("utf-8"))


def sha256_json(value: Any) -> str:
    """Lower-case hex SHA-256 of the canonical JSON of `value`."""
    return sha256_text(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Lower-case hex SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
