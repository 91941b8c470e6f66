"""Digests, against those that are published for SHA-256."""

from __future__ import annotations

from pathlib import Path

from pipeline.domain.canonical import sha256_blocks, sha256_bytes, sha256_file, sha256_text

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""Of "abc", in FIPS 180-2."""


def test_a_digest_is_of_the_bytes_however_they_come(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    found = sha256_bytes(b"abc"), sha256_text("abc"), sha256_file(tmp_path / "file"), sha256_blocks([b"a", b"", b"bc"])
    assert set(found) == {ABC}
