"""What the services need of the model registry, and what the registry has to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.domain.edits import Edit
from pipeline.domain.lineages import Lineage
from pipeline.domain.rank_api import LoadPlan
from pipeline.domain.snapshots import DigestPath, Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryEntry:
    """Everything a model version shows of a snapshot."""

    lineage: Lineage
    """The lineage that it is a snapshot of."""
    snapshot: Snapshot
    """The snapshot that becomes a version."""
    plan: LoadPlan
    """The files its weights are loaded from, as they lie in the artifact store."""
    digest_path: DigestPath
    """How its digest follows from theirs."""
    report: Mapping[str, Any]
    """Its gate report as JSON."""
    edits: tuple[Edit, ...]
    """The edits that it brought in, oldest first."""
    audit_head: tuple[int, str]
    """(seq, hash) of the lineage's chain after the commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryRequest:
    """Somebody asks for a decision in the registry."""

    version: str
    """The model version."""
    snapshot_id: str
    """From its tag."""
    digest: str
    """From its tag."""
    decision: str
    """`approved` or `rejected`."""
    actor: str | None
    """The claimed name from the tag `approval.actor`."""
    reason: str
    """From the tag `approval.reason`; may be empty."""
    by_alias: bool
    """Whether it was asked with the alias (else the tag)."""


class Registry(Protocol):
    """The MLflow model registry."""

    def register(self, entry: RegistryEntry) -> str:
        """Make the model version of a snapshot, once; returns its number."""

    def requests(self, lineage: str) -> tuple[RegistryRequest, ...]:
        """Versions on which somebody asks for a decision that is not answered yet."""

    def answer(self, lineage: str, request: RegistryRequest, *, outcome: str) -> None:
        """Take the request off and write what became of it on the version (tag `approval.outcome`)."""

    def champion(self, lineage: str) -> str | None:
        """Return the version that the alias `champion` points to; None if there is no alias."""

    def point_champion(self, lineage: str, version: str | None) -> None:
        """Set or remove the alias `champion`."""

    def note(self, lineage: str, version: str, *, text: str) -> None:
        """Write a sentence for people on a version (tag `corrigenda.note`); nothing if the version is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionMirror:
    """What the alias `champion` should be."""

    version: str | None
    """Registry version of the champion; None for the base."""
    snapshot_id: str | None
    """The champion; None for the base."""
    is_owed: bool
    """Whether a mirror is still in the outbox: then nobody touched the alias by hand as far as we can tell."""


class MirrorStore(Protocol):
    """What the registry has to show."""

    def entry(self, snapshot_id: str) -> RegistryEntry:
        """Return everything for one model version."""

    def registered(self, snapshot_id: str, *, version: str) -> None:
        """Record the version (once; audit `snapshot:registered`)."""

    def champion_mirror(self, lineage: str) -> ChampionMirror:
        """Return what the alias should be."""
