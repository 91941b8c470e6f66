"""A signed copy of audit chains in one file, which whoever has the public key checks without the database.

The file has a JSON document a line: a header, then for each chain its anchors, its lines in order and what was found of
them, and at the end a seal. The seal signs, with Ed25519, the SHA-256 of every byte before it:

    *before, seal = file.read_bytes().splitlines(keepends=True)
    signed = CONTEXT + sha256(b"".join(before)).digest()
    Ed25519PublicKey.from_public_bytes(key).verify(bytes.fromhex(json.loads(seal)["signature"]), signed)

Writing and checking hold a page of lines, and the anchors of one chain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipeline.domain.audit import Anchor, AuditAction, AuditEvent, ChainBreak, first_break
from pipeline.domain.errors import IntegrityBroken, InvalidInput, Misconfigured

CONTEXT = b"corrigenda audit bundle 1\n"
"""Begins what is signed, so that a signature is of a bundle and of nothing else."""
KEY_BYTES = 32
AnchorsBySeq = dict[int, list[tuple[str, str]]]
"""Who says which hash of a line, by its place in the chain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledChain:
    """One chain, on its way into a bundle."""

    chain: str
    """Name of the chain."""
    head: Anchor
    """Its newest line when the bundle was begun; later ones are left out."""
    events: Iterable[AuditEvent]
    """Its lines up to there, in their order."""
    anchors: Iterable[tuple[str, Anchor]]
    """What was said of its lines outside of the database, and by whom."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedBundleChain:
    """What was found of one chain of a bundle."""

    chain: str
    """Name of the chain."""
    lines: int
    """How many lines of it there are."""
    num_anchors: int
    """How many anchors agree with them."""
    first_break: ChainBreak | None
    """The first line that does not follow, or that an anchor contradicts."""


def signing_key(file: Path) -> Ed25519PrivateKey:
    """Return the key in a file that nobody else may read; made at first use.

    Raises:
        Misconfigured: if the file holds no such key, or others may read it.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        # Only whoever makes the file fills it: two exports at once end with the same key.
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
            made.write(Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")
    except FileExistsError:
        pass
    if file.stat().st_mode & 0o077:
        raise Misconfigured(f"expected a signing key that only its owner may read (chmod 600), got {file}")
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(file.read_text().strip()))
    except ValueError:
        raise Misconfigured(f"expected an Ed25519 key in {file}, 64 hexadecimal digits, got something else") from None


def public_key_of(key: Ed25519PrivateKey) -> str:
    """Return what others check signatures with, as hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def write_bundle(
    stream: BinaryIO, chains: Iterable[BundledChain], *, key: Ed25519PrivateKey, made_at: datetime
) -> tuple[ChainBreak, ...]:
    """Write a bundle; returns the first break of every chain that has one, each of which is in the bundle whole."""
    digest = sha256()

    def put(kind: str, fields: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind, **fields}, ensure_ascii=False, default=_text).encode() + b"\n"
        digest.update(line)
        stream.write(line)

    def lines(one: BundledChain) -> Iterator[AuditEvent]:
        for event in one.events:
            put("line", asdict(event))
            yield event

    put("header", {"version": 1, "made_at": made_at})
    broken = []
    for one in chains:
        anchors = _anchors(put, one)
        events = lines(one)
        found = _checked(one.chain, events, anchors, last=one.head.seq)
        for _ in events:  # what comes after a break belongs into the bundle too
            pass
        put("verdict", {"chain": one.chain, "head": asdict(one.head), "break": found and asdict(found)})
        broken += [found] if found else []
    signature = key.sign(CONTEXT + digest.digest()).hex()
    seal = {"kind": "seal", "sha256": digest.hexdigest(), "public_key": public_key_of(key), "signature": signature}
    stream.write(json.dumps(seal).encode() + b"\n")
    return tuple(broken)


def check_bundle(file: Path, public_key: str) -> list[CheckedBundleChain]:
    """Check the signature of a bundle, and every line of it anew.

    Raises:
        InvalidInput: if the file is no bundle, or the key is none.
        IntegrityBroken: if the file is not what the owner of the key signed.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    except ValueError:
        raise InvalidInput(f"expected a public key of {2 * KEY_BYTES} hexadecimal digits, got another") from None
    _check_seal(file, key)
    with file.open("rb") as stream:
        documents = (json.loads(line) for line in stream)
        kinds = ("anchor", "line", "verdict")
        by_chain = groupby((one for one in documents if one["kind"] in kinds), key=lambda one: str(one["chain"]))
        return [_check_chain(chain, parts) for chain, parts in by_chain]


def _check_seal(file: Path, key: Ed25519PublicKey) -> None:
    digest, last = sha256(), b""
    with file.open("rb") as stream:
        for line in stream:
            digest.update(last)
            last = line
    try:
        seal = json.loads(last)
        signature = bytes.fromhex(seal["signature"]) if seal["kind"] == "seal" else b""
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"expected a bundle that ends with a seal, got {file}") from None
    try:
        key.verify(signature, CONTEXT + digest.digest())
    except InvalidSignature:
        raise IntegrityBroken(f"{file} is not what the owner of this key signed") from None


def _check_chain(chain: str, parts: Iterable[dict[str, Any]]) -> CheckedBundleChain:
    anchors: AnchorsBySeq = {}
    num_lines, verdict = 0, dict[str, Any]()

    def lines() -> Iterator[AuditEvent]:
        nonlocal num_lines, verdict
        for part in parts:
            match part.pop("kind"):
                case "anchor":
                    anchors.setdefault(part["seq"], []).append((part["said_by"], part["hash"]))
                case "line":
                    num_lines += 1
                    at, action = datetime.fromisoformat(part["at"]), cast(AuditAction, part["action"])
                    yield AuditEvent(**(part | {"at": at, "action": action}))
                case "verdict":
                    verdict = part

    events = lines()
    found = _checked(chain, events, anchors, last=None)
    for _ in events:
        pass
    if found is None and num_lines < verdict["head"]["seq"]:
        found = ChainBreak(chain=chain, seq=num_lines + 1, reason="missing; the chain went on to its recorded head")
    return CheckedBundleChain(
        chain=chain, lines=num_lines, num_anchors=sum(map(len, anchors.values())), first_break=found
    )


def _checked(chain: str, events: Iterator[AuditEvent], anchors: AnchorsBySeq, *, last: int | None) -> ChainBreak | None:
    """Return the first line that does not follow, that an anchor contradicts, or that is missing at the end."""
    seq, contradicted = 0, list[ChainBreak]()

    def compared() -> Iterator[AuditEvent]:
        nonlocal seq
        for event in events:
            seq = event.seq
            for said_by, expected in anchors.get(seq, ()):
                if expected != event.hash and not contradicted:
                    reason = f"{said_by} says that this line had the hash {expected[:12]}, now it has {event.hash[:12]}"
                    contradicted.append(ChainBreak(chain=chain, seq=seq, reason=reason))
            yield event

    found = first_break(compared())
    if found is None and last is not None and seq < last:
        found = ChainBreak(chain=chain, seq=seq + 1, reason=f"missing; the recorded head is line {last}")
    gone = min((place for place in anchors if place > seq), default=None)
    if found is None and gone is not None:
        reason = f"missing; {anchors[gone][0][0]} says that there was a line {gone}"
        found = ChainBreak(chain=chain, seq=seq + 1, reason=reason)
    return min([one for one in (found, *contradicted) if one], key=lambda one: one.seq, default=None)


def _anchors(put: Any, one: BundledChain) -> AnchorsBySeq:
    kept: AnchorsBySeq = {}
    for said_by, anchor in one.anchors:
        if anchor.seq > 0:
            put("anchor", {"chain": one.chain, **asdict(anchor), "said_by": said_by})
            kept.setdefault(anchor.seq, []).append((said_by, anchor.hash))
    return kept


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
