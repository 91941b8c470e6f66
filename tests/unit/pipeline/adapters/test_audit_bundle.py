"""A bundle is checked with its public key alone, by ours and by plain Python: whatever was changed is told."""

from __future__ import annotations

import os
import re
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.adapters.audit_bundle import BundledChain, check_bundle, public_key_of, signing_key, write_bundle
from pipeline.domain.audit import GENESIS_HASH, Anchor, AuditAction, AuditEvent, event_hash
from pipeline.domain.errors import IntegrityBroken, InvalidInput, Misconfigured
from tests.support.paths import ROOT

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = public_key_of(KEY)


def lines(length: int, chain: str = "facts") -> Iterator[AuditEvent]:
    before = GENESIS_HASH
    for seq in range(1, length + 1):
        body: dict[str, Any] = {"chain": chain, "seq": seq, "at": NOON, "actor": "intake", "subject": f"größe {seq}"}
        body |= {"action": AuditAction.edit_received, "payload": "{}", "prev_hash": before}
        before = event_hash(**body)
        yield AuditEvent(**body, hash=before)


def bundled(events: Iterable[AuditEvent], *, head: int = 5, anchors: Sequence[tuple[str, Anchor]] = ()) -> BundledChain:
    return BundledChain(chain="facts", head=Anchor(seq=head, hash="x"), events=events, anchors=anchors)


def write(file: Path, *chains: BundledChain) -> list[int]:
    """The lines at which the chains were found broken."""
    with file.open("wb") as stream:
        return [one.seq for one in write_bundle(stream, chains, key=KEY, made_at=NOON)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the bundle lies."""
    return tmp_path / "bundle.jsonl"


def test_a_whole_chain_is_found_whole_with_its_anchors(file: Path) -> None:
    events = list(lines(5))
    anchors = [("version 1", Anchor(seq=0, hash=GENESIS_HASH)), ("version 2", Anchor(seq=4, hash=events[3].hash))]
    system = BundledChain(chain="system", head=Anchor(seq=2, hash="x"), events=lines(2, "system"), anchors=())
    assert write(file, bundled(events, anchors=anchors), system) == []
    found = [(one.chain, one.lines, one.num_anchors, one.first_break) for one in check_bundle(file, PUBLIC)]
    assert found == [("facts", 5, 1, None), ("system", 2, 0, None)]


@pytest.mark.parametrize(
    ("events", "anchor", "at"),
    [
        ([0, 1, 3, 4], None, 3),
        ([0, 1, 2], None, 4),
        ([0, 1, 1, 2, 3, 4], None, 3),
        ([], None, 1),
        ([0, 1, 2, 3, 4], Anchor(seq=2, hash="f" * 64), 2),
        ([0, 1, 2, 3, 4], Anchor(seq=9, hash="f" * 64), 6),
        ([0, 1, 2, 4], Anchor(seq=2, hash="f" * 64), 2),
    ],
)
def test_a_broken_chain_is_written_whole_and_both_sides_name_its_first_wrong_line(
    file: Path, events: list[int], anchor: Anchor | None, at: int
) -> None:
    made = list(lines(5))
    anchors = [("version 1", anchor)] if anchor else []
    assert write(file, bundled([made[place] for place in events], anchors=anchors)) == [at]
    [found] = check_bundle(file, PUBLIC)
    assert (found.lines, found.first_break and found.first_break.seq) == (len(events), at)


def test_a_file_of_which_anything_was_changed_is_not_what_was_signed(file: Path) -> None:
    write(file, bundled(lines(5)))
    whole = file.read_bytes()
    parts = whole.splitlines(keepends=True)
    forged = [b"".join(parts[:3] + parts[4:]), whole.replace(b"intake", b"nobody", 1), b"\n" + whole, parts[-1]]
    for content in forged:
        file.write_bytes(content)
        with pytest.raises(IntegrityBroken, match="not what the owner of this key signed"):
            check_bundle(file, PUBLIC)
    for content in (b"", b"".join(parts[:-1]), whole[:-9], b"[1]\n", whole + b"{}\n"):
        file.write_bytes(content)
        with pytest.raises((IntegrityBroken, InvalidInput)):
            check_bundle(file, PUBLIC)
    file.write_bytes(whole)
    with pytest.raises(IntegrityBroken):
        check_bundle(file, public_key_of(Ed25519PrivateKey.generate()))
    with pytest.raises(InvalidInput, match="expected a public key of 64"):
        check_bundle(file, PUBLIC[:-2])


def test_the_lines_of_python_in_auditing_md_check_it_too(file: Path) -> None:
    [code] = re.findall(r"```python\n(import json\n.*?)```", (ROOT / "AUDITING.md").read_text("utf-8"), re.DOTALL)
    given: dict[str, Any] = {}
    exec(code, given)
    write(file, bundled(lines(5)))
    given["check"](file, PUBLIC)
    file.write_bytes(file.read_bytes().replace(b"intake", b"nobody", 1))
    with pytest.raises(InvalidSignature):
        given["check"](file, PUBLIC)


def test_writing_and_checking_hold_no_more_than_some_lines(file: Path) -> None:
    tracemalloc.start()
    try:
        write(file, bundled(lines(4_000), head=4_000))
        check_bundle(file, PUBLIC)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < file.stat().st_size / 2


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "audit-signing.key"
    made = signing_key(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert public_key_of(signing_key(file)) == public_key_of(made)
    assert made.private_bytes_raw().hex() not in public_key_of(made)
    os.chmod(file, 0o644)
    with pytest.raises(Misconfigured, match="chmod 600"):
        signing_key(file)
    file.write_text("nonsense")
    os.chmod(file, 0o600)
    with pytest.raises(Misconfigured, match="64 hexadecimal digits"):
        signing_key(file)
