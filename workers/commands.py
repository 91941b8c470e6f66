"""Commands that a controller gives to its ranks, and their answers, as plain records.

Each command is a record whose `kind` tells it from the others in JSON; `protocol` sends them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from pipeline.domain import errors
from pipeline.domain.errors import CorrigendaError, EngineFailed
from pipeline.domain.rank_api import (
    Answer,
    Candidate,
    CandidateOutcome,
    ExportedModel,
    KeptFiles,
    Loaded,
    LoadPlan,
    Step,
)

PROTOCOL_VERSION = 4
"""Raised by every change that an older rank or controller would misread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Hold a snapshot from now on."""

    plan: LoadPlan
    """The files that the snapshot is put together from."""
    kind: Literal["load"] = "load"
    """Name of the command in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TryEdits:
    """Make a candidate, measure it, and go back to the snapshot."""

    candidate: Candidate
    """Edits to add to and to take from the snapshot."""
    kind: Literal["try_edits"] = "try_edits"
    """Name of the command in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Hold a candidate that was tried, and write its files."""

    candidate_id: str
    """Id of the candidate, as it was tried."""
    folder: str
    """Existing folder for the files."""
    with_accumulator: bool
    """Whether the accumulators are written too, and the newest rows into one file."""
    kind: Literal["keep"] = "keep"
    """Name of the command in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Take note that the kept candidate is a snapshot now."""

    snapshot_id: str
    """UUID that the candidate was committed under."""
    digest: str
    """Digest of the snapshot."""
    kind: Literal["held"] = "held"
    """Name of the command in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """Continue prompts greedily."""

    prompts: tuple[str, ...]
    """Prompts as they are, in any number."""
    max_new_tokens: int
    """Most tokens of each answer."""
    chat: bool = False
    """Whether each prompt is put into the model's chat template, as a user's turn."""
    kind: Literal["generate"] = "generate"
    """Name of the command in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Write what is held as a model of its own."""

    folder: str
    """New or empty folder for the model."""
    kind: Literal["export"] = "export"
    """Name of the command in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Free:
    """Let go of the lineage; the base stays loaded."""

    kind: Literal["free"] = "free"
    """Name of the command in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ping:
    """Answer with nothing but the digest of the weights."""

    kind: Literal["ping"] = "ping"
    """Name of the command in JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shutdown:
    """End the ranks; there is no answer."""

    kind: Literal["shutdown"] = "shutdown"
    """Name of the command in JSON."""


Command = Annotated[
    Load | TryEdits | Keep | Held | Generate | Export | Free | Ping | Shutdown,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A command, with the lease under which it is given."""

    seq: int
    """Number of the request; each is higher than the one before."""
    lineage: str
    """Name of the lineage that the group works for; empty before the first load."""
    epoch: int
    """Epoch of the lease; a rank refuses one below the highest that it has seen for the lineage."""
    command: Command
    """The command itself."""
    version: int = PROTOCOL_VERSION
    """Version of the protocol of who sends it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An error as the ranks tell it to the controller."""

    error: str
    """Name of a class of `pipeline.domain.errors`."""
    message: str
    """The error's sentence."""
    ids: dict[str, str] = field(default_factory=dict)
    """Ids of the records concerned, by kind."""

    def as_error(self) -> CorrigendaError:
        """Return the error as it was raised; `EngineFailed` for a class that is not known here."""
        found = getattr(errors, self.error, None)
        error: CorrigendaError = EngineFailed(f"{self.error}: {self.message}")
        if isinstance(found, type) and issubclass(found, CorrigendaError):
            error = found(self.message)
        error.ids.update(self.ids)
        return error


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The answer of all ranks to a command; at most one of `failure` and the results is there."""

    seq: int
    """Number of the request that is answered."""
    digest: str = ""
    """SHA-256 of the edited weights that the ranks hold now; empty before the first load."""
    peak_bytes: tuple[int | None, ...] = ()
    """The most memory that each rank ever held: of its accelerator, or of the host without one; None if unknown."""
    failure: Failure | None = None
    """Why the command was not carried out."""
    loaded: Loaded | None = None
    """Result of `load`."""
    outcome: CandidateOutcome | None = None
    """Result of `try_edits`."""
    files: KeptFiles | None = None
    """Result of `keep`."""
    answers: tuple[Answer, ...] | None = None
    """Result of `generate`."""
    exported: ExportedModel | None = None
    """Result of `export`."""
    step: Step | None = None
    """A step that begins: then this is no answer yet, and nothing else is in it."""
    version: int = PROTOCOL_VERSION
    """Version of the protocol of who sends it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """The first message of rank 0, sent before it imports anything heavy."""

    pid: int
    """Process id of rank 0."""
    world_size: int
    """Number of ranks that it belongs to."""
    version: int = PROTOCOL_VERSION
    """Version of the protocol of who sends it."""


def failure_of(error: BaseException) -> Failure:
    """Return what the controller is told of an error; one that is not ours becomes `EngineFailed`."""
    if isinstance(error, CorrigendaError):
        return Failure(error=type(error).__name__, message=_writable(str(error)), ids=error.ids)
    return Failure(error=EngineFailed.__name__, message=_writable(f"{type(error).__name__}: {error}"))


def _writable(text: str) -> str:
    """Return a text that JSON takes: whoever fails must be able to say so, whatever a library told it."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
