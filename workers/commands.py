"""What a controller says to its ranks and what they answer. Plain data; knows no socket, no process and no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from pipeline.domain import errors
from pipeline.domain.errors import CorrigendaError, EngineFailed
from pipeline.domain.rank_api import Answer, Candidate, CandidateOutcome, ExportedModel, KeptFiles, Loaded, LoadPlan

PROTOCOL_VERSION = 4
"""Raised by every change that an older rank or controller would misread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Hold a snapshot."""

    plan: LoadPlan
    """What it is put together from."""
    kind: Literal["load"] = "load"
    """Tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TryEdits:
    """Edit, measure, and go back."""

    candidate: Candidate
    """The candidate."""
    kind: Literal["try_edits"] = "try_edits"
    """Tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Write a tried candidate's files and hold it."""

    candidate_id: str
    """Which candidate."""
    folder: str
    """Where the files go."""
    with_accumulator: bool
    """Whether the accumulators are written too."""
    kind: Literal["keep"] = "keep"
    """Tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """The kept candidate was committed."""

    snapshot_id: str
    """Under this id."""
    digest: str
    """With this digest."""
    kind: Literal["held"] = "held"
    """Tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """Continue prompts greedily."""

    prompts: tuple[str, ...]
    """The prompts."""
    max_new_tokens: int
    """Most tokens of an answer."""
    kind: Literal["generate"] = "generate"
    """Tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Write what is held as a model of its own."""

    folder: str
    """Where to; new or empty."""
    kind: Literal["export"] = "export"
    """Tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Free:
    """Let go of the lineage; the base stays."""

    kind: Literal["free"] = "free"
    """Tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ping:
    """Answer, with the digest of the weights that are held."""

    kind: Literal["ping"] = "ping"
    """Tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shutdown:
    """End."""

    kind: Literal["shutdown"] = "shutdown"
    """Tag."""


Command = Annotated[
    Load | TryEdits | Keep | Held | Generate | Export | Free | Ping | Shutdown,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A command and on whose behalf it is given."""

    seq: int
    """Number on this connection, rising."""
    lineage: str
    """Name of the lineage that the group works for; empty before the first load."""
    epoch: int
    """Of the lease; a rank refuses one below the highest it has seen for the lineage."""
    command: Command
    """What to do."""
    version: int = PROTOCOL_VERSION
    """Of the protocol."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An error on its way to the controller."""

    error: str
    """Name of a class of `pipeline.domain.errors`."""
    message: str
    """Its sentence."""
    ids: dict[str, str] = field(default_factory=dict)
    """The records concerned."""

    def as_error(self) -> CorrigendaError:
        """The error as it was raised; `EngineFailed` for a class that is not known here."""
        found = getattr(errors, self.error, None)
        if isinstance(found, type) and issubclass(found, CorrigendaError):
            return found(self.message, **self.ids)
        return EngineFailed(f"{self.error}: {self.message}", **self.ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the ranks answer to a command; at most one of the last six is there."""

    seq: int
    """Of the command."""
    digest: str = ""
    """SHA-256 of the edited weights that the ranks hold now; empty before the first load."""
    peak_bytes: tuple[int | None, ...] = ()
    """The most memory that each rank ever held: of its accelerator, or of the host without one; None if unknown."""
    failure: Failure | None = None
    """Why it was not done."""
    loaded: Loaded | None = None
    """Of `load`."""
    outcome: CandidateOutcome | None = None
    """Of `try_edits`."""
    files: KeptFiles | None = None
    """Of `keep`."""
    answers: tuple[Answer, ...] | None = None
    """Of `generate`."""
    exported: ExportedModel | None = None
    """Of `export`."""
    version: int = PROTOCOL_VERSION
    """Of the protocol."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """The first thing that rank 0 says, before it imports anything heavy."""

    pid: int
    """Its process id."""
    world_size: int
    """Ranks in its group."""
    version: int = PROTOCOL_VERSION
    """Of the protocol."""


def failure_of(error: BaseException) -> Failure:
    """An error as it crosses the socket; what is not ours becomes `EngineFailed`."""
    if isinstance(error, CorrigendaError):
        return Failure(error=type(error).__name__, message=str(error), ids=error.ids)
    return Failure(error=EngineFailed.__name__, message=f"{type(error).__name__}: {error}")
