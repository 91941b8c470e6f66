"""Canonical text, against the library that writes it; digests, against those that are published for SHA-256."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.canonical import canonical_json, sha256_blocks, sha256_bytes, sha256_file, sha256_text

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""Of "abc", in FIPS 180-2."""


def test_a_digest_is_of_the_bytes_however_they_come(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    found = sha256_bytes(b"abc"), sha256_text("abc"), sha256_file(tmp_path / "file"), sha256_blocks([b"a", b"", b"bc"])
    assert set(found) == {ABC}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(list(AuditAction)),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)
NAMES_THAT_UTF_16_SORTS_DIFFERENTLY = {"\U0001f600": 1, "\ufb33": 2}


@given(VALUES)
@example("\x00\x1f\x7f\u2028\u00e9\ufeff")
@example([2**53 - 1, -(2**53) + 1, 2**53, 1.0, 1e21, -0.0])
@example([True, 1, 1.5, "1"])
@example(NAMES_THAT_UTF_16_SORTS_DIFFERENTLY)
@example({"\ud800": 1})
@example("\udfff")
@example({1: "a name that is no text"})
def test_the_canonical_text_is_that_of_the_library_or_neither_has_one(value: Any) -> None:
    try:
        expected = rfc8785.dumps(value).decode()
    except (rfc8785.CanonicalizationError, UnicodeError):
        with pytest.raises(InvalidInput):
            canonical_json(value)
    else:
        assert canonical_json(value) == expected
