"""Snapshots: an edited model as an active set of edits, its identity, and how its weights are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pipeline.domain.canonical import sha256_text
from pipeline.domain.lifecycle import SnapshotStatus

ACCUMULATOR_EVERY = 32
"""Every this many snapshots the accumulators are stored, so that loading replays at most one less."""


class Basis(StrEnum):
    """What a snapshot's delta stands on."""

    parent = "parent"
    base = "base"


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A file in the artifact store."""

    uri: str
    """Where it is, as the artifact store names it."""
    digest: str
    """SHA-256 of its bytes."""
    num_bytes: int
    """Its size."""


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
    """Identity of the weights, see `snapshot_digest`."""
    status: SnapshotStatus
    """Where it stands."""
    gate_report_id: str
    """The passing report that is bound to the digest."""
    registry_version: str | None
    """MLflow model version, once mirrored."""
    created_at: datetime
    """Database time of the commit."""


def snapshot_digest(*, base_digest: str, delta_digests: Sequence[str]) -> str:
    """SHA-256 of the base's digest and the digests of the deltas in order, one a line."""
    return sha256_text("\n".join([base_digest, *delta_digests]))


def stores_accumulator(*, seq: int, basis: Basis) -> bool:
    """Whether the snapshot with this place has to store its accumulators."""
    return basis is Basis.base or seq % ACCUMULATOR_EVERY == 0
