"""Compares audit chains with their anchors, in the model registry and in a file, and notes new ones in that file."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Protocol

from pipeline.domain.audit import (
    SYSTEM_CHAIN,
    Anchor,
    AnchoredVersion,
    AnchorNote,
    AnchorReport,
    ChainBreak,
    RegisteredSnapshot,
)

PAGE = 500


class AnchorSource(Protocol):
    """Where the anchors are kept."""

    def versions(self, lineage: str) -> Iterator[AnchoredVersion]:
        """Yield the versions of a lineage by number; none if the registry has no such model.

        Raises:
            Unavailable, Misconfigured: if the registry cannot be asked.
        """


class AnchoredChains(Protocol):
    """The chains that are compared with them."""

    def chains(self) -> tuple[str, ...]:
        """Return the names of all chains."""

    def hashes(self, chain: str, seqs: Sequence[int]) -> Mapping[int, str]:
        """Return the hashes of those lines that exist."""

    def registered(self, chain: str) -> Generator[RegisteredSnapshot]:
        """Yield the snapshots of a lineage that are model versions, by version number; to be closed."""


class AnchorChecker:
    """Reads each anchor once, and each line that one names: time is linear, memory is that of a page."""

    def __init__(self, *, chains: AnchoredChains, anchors: AnchorSource) -> None:
        self._chains = chains
        self._anchors = anchors

    def check(self, chain: str) -> AnchorReport:
        """Return what the anchors say about a chain.

        Raises:
            Unavailable, Misconfigured: if the registry or the database cannot be asked; nothing was compared then.
        """
        found = _Findings(chain)
        if chain != SYSTEM_CHAIN:
            # Closed also where the registry goes away in between: the snapshots come out of an open transaction.
            with closing(self._chains.registered(chain)) as known:
                self._compare(found, self._expected(found, chain, known), whose="model version {} was registered when")
        for lineage in self._chains.chains() if chain == SYSTEM_CHAIN else ():
            if lineage != SYSTEM_CHAIN:
                told = ((v.version, v.system_anchor) for v in self._anchors.versions(lineage))
                self._compare(found, told, whose=f"model version {{}} of {lineage} was registered when")
        return AnchorReport(num_agreeing=found.num_agreeing, newest_seq=found.newest_seq, contradiction=found.first)

    def _expected(
        self, found: _Findings, lineage: str, known: Iterator[RegisteredSnapshot]
    ) -> Iterator[tuple[int, Anchor | None]]:
        """Yield the anchors of a lineage, and note those that are missing or older than what they vouch for."""
        expected = next(known, None)
        for version in self._anchors.versions(lineage):
            while expected is not None and expected.version < version.version:
                found.note(_gone(lineage, expected))
                expected = next(known, None)
            if expected is not None and expected.version == version.version:
                found.note(_objection(lineage, expected, version))
                expected = next(known, None)
            yield version.version, version.lineage_anchor
        while expected is not None:
            found.note(_gone(lineage, expected))
            expected = next(known, None)

    def _compare(self, found: _Findings, anchors: Iterable[tuple[int, Anchor | None]], *, whose: str) -> None:
        _compare(self._chains, found, anchors, whose=whose)


class AnchorNotes(Protocol):
    """Anchors in a file or a bucket that only grows."""

    where: str
    """What people call it."""

    def append(self, notes: Iterable[AnchorNote]) -> None:
        """Add notes at its end."""

    def notes(self) -> Iterator[AnchorNote]:
        """Yield what was noted, oldest first."""


def check_notes(chains: AnchoredChains, chain: str, file: AnchorNotes) -> AnchorReport:
    """Return what a file or a bucket of anchors says about a chain.

    Raises:
        Misconfigured: if the file cannot be read.
        Unavailable: if the database cannot be asked.
    """
    found = _Findings(chain)
    told = ((note.at, note.anchor) for note in file.notes() if note.chain == chain)
    _compare(chains, found, told, whose=f"{file.where} says that at {{}}")
    return AnchorReport(num_agreeing=found.num_agreeing, newest_seq=found.newest_seq, contradiction=found.first)


class AnchorKeeper:
    """Notes in a file where each chain stands, whenever one has gone on."""

    def __init__(self, *, chains: ChainHeads, file: AnchorNotes) -> None:
        self._chains = chains
        self._file = file
        self._noted: dict[str, Anchor] = {}

    def run_once(self) -> None:
        """Note the chains that have gone on since the last time; after a restart, all of them."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        heads = {
            chain: Anchor(seq=seq, hash=digest)
            for chain in self._chains.chains()
            for seq, digest in [self._chains.head(chain)]
            if seq > 0
        }
        new = {chain: anchor for chain, anchor in heads.items() if self._noted.get(chain) != anchor}
        if new:
            self._file.append(AnchorNote(at=at, chain=chain, anchor=anchor) for chain, anchor in new.items())
            self._noted |= new


class ChainHeads(Protocol):
    """Where the chains stand now."""

    def chains(self) -> tuple[str, ...]:
        """Return the names of all chains."""

    def head(self, chain: str) -> tuple[int, str]:
        """Return place and hash of the newest line; 0 for an empty chain."""


def _compare(
    chains: AnchoredChains, found: _Findings, anchors: Iterable[tuple[object, Anchor | None]], *, whose: str
) -> None:
    told = ((said_by, anchor) for said_by, anchor in anchors if anchor is not None and anchor.seq > 0)
    while page := list(islice(told, PAGE)):
        hashes = chains.hashes(found.chain, sorted({anchor.seq for _, anchor in page}))
        for said_by, anchor in page:
            found.compare(anchor, hashes.get(anchor.seq), said_by=whose.format(said_by))


@dataclass(slots=True)
class _Findings:
    chain: str
    num_agreeing: int = 0
    newest_seq: int = 0
    first: ChainBreak | None = None

    def compare(self, anchor: Anchor, found: str | None, *, said_by: str) -> None:
        if found == anchor.hash:
            self.num_agreeing += 1
            self.newest_seq = max(self.newest_seq, anchor.seq)
            return
        has = "it is missing" if found is None else f"it has {found[:12]}"
        reason = f"{said_by} this line had the hash {anchor.hash[:12]}, and now {has}"
        self.note(ChainBreak(chain=self.chain, seq=anchor.seq, reason=reason))

    def note(self, one: ChainBreak | None) -> None:
        if one is not None and (self.first is None or one.seq < self.first.seq):
            self.first = one


def _gone(chain: str, snapshot: RegisteredSnapshot) -> ChainBreak:
    reason = f"its snapshot became model version {snapshot.version}, which the registry does not have"
    return ChainBreak(chain=chain, seq=snapshot.created_seq or 1, reason=reason)


def _objection(chain: str, snapshot: RegisteredSnapshot, version: AnchoredVersion) -> ChainBreak | None:
    anchor, created = version.lineage_anchor, snapshot.created_seq
    if anchor is None:
        reason = f"its snapshot became model version {version.version}, which carries no anchor"
    elif created is None:
        reason = f"no line says how the snapshot of model version {version.version} was made"
        return ChainBreak(chain=chain, seq=anchor.seq, reason=reason)
    elif anchor.seq < created:
        reason = f"model version {version.version} has an anchor of line {anchor.seq}, before its snapshot was made"
    else:
        return None
    return ChainBreak(chain=chain, seq=created or 1, reason=reason)
