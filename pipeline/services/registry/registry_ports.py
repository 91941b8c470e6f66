"""What the services need of the model registry, and what the registry has to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.domain.audit import GENESIS_HASH
from pipeline.domain.edits import Edit
from pipeline.domain.lineages import Lineage
from pipeline.domain.rank_api import LoadPlan
from pipeline.domain.snapshots import DigestPath, Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A snapshot between the champion and another one, which goes live with it: a candidate, or rolled back."""

    seq: int
    """Its place in the lineage."""
    version: str | None
    """Its model version; None if it has none yet."""
    num_edits: int
    """How many edits it brought in that go live."""
    edits: tuple[str, ...]
    """The first of them, as prompt and target."""
    is_rolled_back: bool = False
    """Whether it was live once and was rolled back; else it is a candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrendPoint:
    """What the gates measured of one snapshot of a lineage."""

    seq: int
    """Its place in the lineage."""
    values: Mapping[str, float | None]
    """Value by metric; None where it was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a person has to know beside a snapshot itself."""

    waiting: tuple[Waiting, ...] = ()
    """Snapshots that approving it makes live too, oldest first; the newest few."""
    num_waiting: int = 0
    """How many there are."""
    num_waiting_edits: int = 0
    """How many edits those brought in that go live."""
    gone: tuple[str, ...] = ()
    """Edits of before that it does not hold any more, each with its request id; the first few."""
    remade: tuple[str, ...] = ()
    """Facts of before that were made again beside what came or went, as they are about the same subjects; the first
    few."""
    work: str = ""
    """What the snapshot is where no batch made it: what was done, who asked and why; empty for a batch."""
    trend: tuple[TrendPoint, ...] = ()
    """What was measured of the last snapshots, itself included, oldest first."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each edit came in, by edit id: topic, partition and offset."""


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
    system_audit_head: tuple[int, str] = (0, GENESIS_HASH)
    """(seq, hash) of the chain `system` at that time."""
    around: Surroundings = field(default_factory=Surroundings)
    """What is shown beside it."""


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
    authenticated: str | None
    """The user of the registry who asked, where its server says so in a way that nobody else can write."""
    reason: str
    """From the tag `approval.reason`; may be empty."""
    by_alias: bool
    """Whether it was asked with the alias (else the tag)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version as the registry shows it now: what it says there is not yet checked."""

    version: str
    """The number that MLflow has given it."""
    snapshot_id: str
    """From its tag; empty where there is none."""
    digest: str
    """The snapshot's digest, from its tag."""
    package_digest: str
    """The digest of its files, from its tag; empty for versions of before there was one."""


Seal = Callable[[str], None]
"""Records the digest of a version's files before any of them leaves this machine."""


class Registry(Protocol):
    """The MLflow model registry."""

    def register(self, entry: RegistryEntry, *, seal: Seal) -> str:
        """Make the model version of a snapshot, once; returns its number.

        A version that is there already is taken only if its files have the digest that was sealed for the snapshot.
        """

    def find(self, lineage: str, version: str) -> RegisteredVersion | None:
        """Return a version, if it and the model that it points to are still there."""

    def check_package(self, lineage: str, version: str, expected: str) -> None:
        """Fetch the files of a version, and those that they name, and check them; nothing of them is run."""

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
class Displaced:
    """The alias `champion` where somebody's hand had put it."""

    found: str | None
    """The version that it pointed to; None where it was taken off."""
    back: str | None
    """Where Corrigenda puts it back to; None for the base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionMirror:
    """What the alias `champion` should be."""

    version: str | None
    """Registry version of the champion; None for the base."""
    snapshot_id: str | None
    """The champion; None for the base."""
    package_digest: str | None
    """Digest of the champion's files in the registry; None for the base, and for versions of before."""
    is_owed: bool
    """Whether a mirror is still in the outbox: then the alias may still be what Corrigenda wrote before."""
    written: tuple[str | None, ...] | None
    """What Corrigenda has written last, or is about to write; None where that was not kept yet."""
    putting_back: Displaced | None
    """A move by hand that is being put right: whoever began may have ended in between."""
    traceparent: str | None = None
    """Where the trace of the champion goes on; None if there is no trace."""

    @property
    def is_registered(self) -> bool:
        """Whether the champion, if there is one, has a version that was not found missing."""
        return self.snapshot_id is None or self.version is not None


class MirrorStore(Protocol):
    """What the registry has to show."""

    def entry(self, snapshot_id: str) -> RegistryEntry:
        """Return everything for one model version."""

    def seal(self, snapshot_id: str, package_digest: str) -> None:
        """Record the digest of the files that are about to become the snapshot's version; not once there is one."""

    def registered(self, snapshot_id: str, *, version: str) -> None:
        """Record the version (once; audit `snapshot:registered`)."""

    def unregistered(self, snapshot_id: str, *, version: str, actor: str, reason: str) -> bool:
        """Forget a version that cannot be used and owe another; False if that is another process's doing already.

        Audit `champion:missing` for the champion, else `snapshot:unregistered`, in the same transaction.
        """

    def champion_mirror(self, lineage: str) -> ChampionMirror:
        """Return what the alias should be."""

    def pointing(self, lineage: str, version: str | None) -> None:
        """Record that the alias may be this version from now on, beside what it was."""

    def pointed(self, lineage: str, version: str | None) -> None:
        """Record that the alias is this version and nothing else."""

    def putting_back(self, lineage: str, displaced: Displaced) -> None:
        """Record a move by hand that is about to be put right."""

    def put_back(self, lineage: str, displaced: Displaced, *, actor: str) -> None:
        """Audit `champion:restored`, once for each move that was recorded before."""
