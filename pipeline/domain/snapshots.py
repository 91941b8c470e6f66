"""Snapshots: an edited model as an active set of edits, its identity, and how its weights are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pipeline.domain.formats.canonical import sha256_text
from pipeline.domain.lifecycle import SnapshotStatus

ACCUMULATOR_EVERY = 32
"""Every this many snapshots the accumulators are stored, so that loading replays at most one less."""


class Basis(StrEnum):
    """What a snapshot's delta stands on."""

    parent = "parent"
    base = "base"


class DigestForm(StrEnum):
    """What a snapshot's digest was made of."""

    list = "list"
    chain = "chain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A file in the artifact store."""

    uri: str
    """Where it is, as the artifact store names it."""
    digest: str
    """SHA-256 of its bytes."""
    num_bytes: int
    """Its size in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """One edited model: the base plus the deltas up to here."""

    snapshot_id: str
    """UUID, version 7."""
    lineage: str
    """Name of the lineage."""
    seq: int
    """Place in the lineage's history, from 1 without gaps."""
    parent_id: str | None
    """The head before; None for the first."""
    basis: Basis
    """What the delta stands on: the parent, or the base after a rebuild."""
    delta: Artifact
    """Low-rank factors of the change, safetensors."""
    accumulator: Artifact | None
    """The whole fp32 shift of every inner parameter; stored every 32nd snapshot and at every rebuild."""
    digest: str
    """Identity of the weights, see `DigestPath`."""
    digest_form: DigestForm
    """Whether it is made of the parent's digest (`chain`) or of all deltas (`list`, snapshots made before 0004)."""
    num_active: int
    """Edits in its active set."""
    status: SnapshotStatus
    """Where it stands."""
    gate_report_id: str
    """The passing report that is bound to the digest."""
    registry_version: str | None
    """MLflow model version, once mirrored."""
    created_at: datetime
    """Database time of the commit."""
    package_digest: str | None = None
    """Digest of the files of its model version, see `packages`; None for versions of before that was kept."""
    traceparent: str | None = None
    """Where the trace of its batch goes on, as W3C writes it; None if there is no trace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DigestPath:
    """How the digest of a snapshot follows from digests of deltas, so that whoever loads it can check it.

    A new snapshot's digest is made of two: its parent's and its delta's. Snapshots of before were given the digest of a
    list of all deltas; a path over both begins with that list.
    """

    start: str
    """What the first delta stands on: the base's digest, or that of a snapshot."""
    listed: tuple[str, ...]
    """Digests of deltas that are hashed together with `start`."""
    chained: tuple[str, ...]
    """Digests of the deltas above, each hashed with the digest of the snapshot below it."""

    @property
    def digest(self) -> str:
        """The digest of the snapshot at the end of the path."""
        digest = snapshot_digest(base_digest=self.start, delta_digests=self.listed) if self.listed else self.start
        for delta_digest in self.chained:
            digest = chained_digest(digest, delta_digest)
        return digest

    def ends_with(self, delta_digests: Sequence[str]) -> bool:
        """Return whether these are the last deltas of the path, in order."""
        every, own = (*self.listed, *self.chained), tuple(delta_digests)
        return every[len(every) - len(own) :] == own


def chained_digest(parent_digest: str, delta_digest: str) -> str:
    """Return SHA-256 of the parent's digest (the base's for the first snapshot) and the delta's, one a line."""
    return sha256_text(f"{parent_digest}\n{delta_digest}")


def snapshot_digest(*, base_digest: str, delta_digests: Sequence[str]) -> str:
    """Return a digest in the form `list`: SHA-256 of the base's digest and those of all deltas in order, one a line."""
    return sha256_text("\n".join([base_digest, *delta_digests]))


def stores_accumulator(*, seq: int, basis: Basis) -> bool:
    """Return whether the snapshot with this place has to store its accumulators."""
    return basis is Basis.base or seq % ACCUMULATOR_EVERY == 0
