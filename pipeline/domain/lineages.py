"""A base model under one name, with everything that decides how it is edited and judged."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.domain.audit import SYSTEM_CHAIN
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.counting import counted
from pipeline.domain.gates import GatePolicy
from pipeline.domain.ledger.upkeep import Resolving, Upkeep
from pipeline.domain.rank_api import BaseSpec, EditorIdentity, EditorSettings, Step
from pipeline.domain.review.policies import ApprovalPolicy
from pipeline.domain.snapshots import Artifact

_NAME = re.compile(r"[^/:?\\\s]{1,100}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedArtifacts:
    """A trained editor in the artifact store."""

    name: str
    """How people call it: the name of the folder it came from."""
    card: Artifact
    """What it is for."""
    tensors: Artifact
    """The network, `editor.safetensors`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewLineage:
    """What is needed to make a lineage."""

    name: str
    """Unique; also the name of the registered model, see `check_name`."""
    base: BaseSpec
    """The base model."""
    editor: EditorSettings
    """How it is edited."""
    policy: GatePolicy
    """What a snapshot has to show."""
    prior: Artifact
    """Second moments of the keys over plain text."""
    reference: Artifact
    """The suite, the text, and what the base answers to them."""
    trained: TrainedArtifacts | None = None
    """The trained editor that `editor.transform` names; None for the gradient."""
    approval_policy: ApprovalPolicy = field(default_factory=ApprovalPolicy)
    """Who has to approve its snapshots before they go live."""

    @property
    def editor_identity(self) -> EditorIdentity:
        """Which editor it is, for reports and people."""
        if self.trained is None:
            return EditorIdentity(solver=self.editor.solver)
        return EditorIdentity(solver=self.editor.solver, transform=self.trained.name, digest=self.editor.transform)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """A lineage as it stands."""

    lineage_id: str
    """UUID of the lineage."""
    settings: NewLineage
    """What it was made with."""
    editor_digest: str
    """SHA-256 of the editor's settings, which name the digest of its trained weights."""
    head_id: str | None
    """The newest snapshot in its history; None before the first."""
    head_seq: int
    """Its place; 0 before the first."""
    head_digest: str
    """Its digest; the base's before the first."""
    champion_id: str | None
    """The snapshot that is live; None for the base."""
    champion_seq: int
    """Its place; 0 for the base."""
    hold: str | None
    """Why no batch may be edited now; None if one may."""
    created_at: datetime
    """Database time of its creation."""
    upkeep: Upkeep = field(default_factory=Upkeep)
    """What it does by itself to stay as good as it is."""
    head_strength: float | None = None
    """The prior's strength at the head; None where it is that of the editor's settings."""

    @property
    def prior_strength(self) -> float:
        """The prior's strength for the next batch."""
        return self.settings.editor.prior_strength if self.head_strength is None else self.head_strength


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to write a lineage until it expires or somebody takes a higher epoch."""

    lineage: str
    """Name of the lineage."""
    owner: str
    """Who holds it: host, process id and a random part."""
    epoch: int
    """Only grows; every write of the owner is checked against it."""
    expires_at: datetime
    """Database time at which it ends unless renewed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """A request to take active edits out of the head, or to solve its ledger anew."""

    removal_id: str
    """UUID of the removal."""
    lineage: str
    """Name of the lineage."""
    edit_ids: tuple[str, ...]
    """Active edits to take out."""
    reinstated_ids: tuple[str, ...]
    """Superseded edits that come back, when the candidate that displaced them was rejected."""
    rejected_snapshot_id: str | None
    """The rejected snapshot, or None when a person reverts edits."""
    actor: str
    """Who asked for it."""
    reason: str
    """Why, in the words of who asked."""
    resolving: Resolving | None = None
    """How the ledger is solved anew; then no edit leaves or comes back."""

    @property
    def is_undo(self) -> bool:
        """Whether it brings an earlier ledger back."""
        return self.resolving is not None and self.resolving.undoes is not None


def check_name(name: str) -> None:
    """Check that a lineage may have this name, which is also that of an experiment and of a registered model.

    Raises:
        InvalidInput: if MLflow could not keep it, find it in a search or read it in `models:/NAME@champion`, if people
            could not tell it from another, or if it is the name of the system's own audit chain.
    """
    if not _NAME.fullmatch(name):
        raise _refused(name, "1 to 100 characters without '/', '\\', ':', '?' and blanks")
    if not name.isprintable() or not unicodedata.is_normalized("NFC", name):
        raise _refused(name, "characters that can be seen, in Unicode's composed form")
    if "'" in name and '"' in name:
        raise _refused(name, "one kind of quotation marks at most")
    if name == "." or name.startswith(".."):
        raise _refused(name, "what is no path")
    if name == SYSTEM_CHAIN:
        raise InvalidInput(f"expected a name for a lineage, got {name!r}, kept for an audit chain", lineage=name)


def _refused(name: str, expected: str) -> InvalidInput:
    return InvalidInput(f"expected as the name of a lineage {expected}, got {name!r:.120}", lineage=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A piece of work under a lease."""

    kind: str
    """`editing` a batch, `removing` edits, or `rekeying`: solving the ledger anew."""
    num_edits: int
    """How many edits the batch or the removal holds."""
    trial: int = 0
    """Which trial of the batch runs, from 1; 0 before the first."""
    num_tried: int = 0
    """How many of the edits are in that trial."""
    step: Step = field(default_factory=lambda: Step(name="loading the model"))
    """The step that began last."""

    def as_json(self) -> dict[str, Any]:
        """Return it as it is kept beside the lease."""
        return {
            "kind": self.kind,
            "num_edits": self.num_edits,
            "trial": self.trial,
            "num_tried": self.num_tried,
            "step": {"name": self.step.name, "done": self.step.done, "of": self.step.of},
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> Work:
        """Return what was kept; what a later version adds is left out."""
        step = stored.get("step", {})
        return Work(
            kind=str(stored.get("kind", "working")),
            num_edits=int(stored.get("num_edits", 0)),
            trial=int(stored.get("trial", 0)),
            num_tried=int(stored.get("num_tried", 0)),
            step=Step(name=str(step.get("name", "working")), done=int(step.get("done", 0)), of=int(step.get("of", 0))),
        )

    def sentence(self) -> str:
        """Return it for people: `editing a batch of 12 edits, trial 2 with 6 edits, pass 7 of at most 12`."""
        edits = counted(self.num_edits, "edit")
        kinds = {"editing": f"editing a batch of {edits}", "rekeying": "solving the ledger anew"}
        parts = [kinds.get(self.kind, f"taking out {edits}")]
        if self.trial > 1:
            parts.append(f"trial {self.trial} with {counted(self.num_tried, 'edit')}")
        return ", ".join([*parts, self.step.sentence()])


@dataclass(frozen=True, kw_only=True, slots=True)
class Activity:
    """What the holder of a lineage's lease does, by the database's clock."""

    owner: str
    """Name of the worker."""
    work: Work | None
    """The piece of work; None before the first under this lease."""
    seconds: float
    """How long ago that work began; 0 if there is none."""

    def sentence(self) -> str:
        """Return it for people, with how long the work has taken."""
        return f"{self.work.sentence()}, {self.seconds:.0f} s" if self.work else "waiting for a batch to fill"
