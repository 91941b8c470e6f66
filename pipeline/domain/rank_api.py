"""What the control plane asks of a group of ranks, and what it gets back. Plain data: it crosses a socket as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

from pipeline.domain.edits import Edit, Probe
from pipeline.domain.formats.ranges import Range, require_within
from pipeline.domain.measurements import Measurements

BEFORE_FRAMES = {"frames_per_pass": 0, "num_guards": 0, "rephrase_rows": 0}
"""Settings of lineages and trained editors that were made when an edit was read after its own prompt alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditorSettings:
    """How a lineage edits. The defaults are those that were measured (DECISIONS.md, 16 to 19 and 39)."""

    solver: str = "recursive"
    """`recursive` (the ledger), `least_squares` or `row_sum`."""
    transform: str = "gradient"
    """`gradient`, or the digest of a trained MEND transform."""
    inner_params: tuple[str, ...] = ()
    """Names of the edited weights, in block order; resolved when the lineage is made."""
    subject_params: tuple[str, ...] = ()
    """Those of them whose edit rows are subject tokens; they are asked first, the others for what is still missing."""
    prior_strength: float = 1000.0
    """c: weight of the preservation prior C0 = c * mean(k k^T)."""
    ridge: float = 1e-3
    """Lambda, as a fraction of the mean diagonal of C0; of K^T K where there is no prior."""
    damping: float = 0.02
    """Damping of the natural gradient, as a share of the mean diagonal of its moments; 0 for the gradient."""
    step: float = 0.7
    """Step of a pass, scaled by what each token's probability falls short of."""
    stop_probability: float = 0.6
    """Probability from which a target token asks for nothing more."""
    num_passes: int = 6
    """Most passes over a batch in each group of inner parameters."""
    trained_passes: int = 1
    """How many of them a trained transform asks; the gradient asks the others."""
    rephrase_rows: int = 2
    """How many of a request's own rephrases are edit rows too; never the first, which is kept as a probe."""
    frames_per_pass: int = 2
    """How many of an edit's frames (`editors.methods.frames`) a pass asks: its own prompt, and those that lag most. 0
    for no frames: rows of its own prompt and its rephrases, each with a shift of its own."""
    num_guards: int = 6
    """How many other subjects, put into the edit's own prompt, are held where they are."""
    batch_size: int = 32
    """Most edits in a batch."""
    change_bound: float = 0.0
    """Most that a batch may change an inner parameter by, as a fraction of its norm in the base; what asks for more is
    scaled back. 0 for no bound but that of the gates."""

    def __post_init__(self) -> None:
        """Refuse numbers out of `RANGES` (Misconfigured)."""
        require_within(self, RANGES, "an editor")

    @property
    def remakes_siblings(self) -> bool:
        """Whether active edits about a subject are made again when another edit about it comes or goes."""
        return self.solver == "recursive" and bool(self.subject_params)

    @classmethod
    def from_stored(cls, fields: Mapping[str, Any]) -> Self:
        """Read settings from JSON; those that were stored before a field came in go on as they did then."""
        former = BEFORE_FRAMES | ({"stop_probability": fields["rest"]} if "rest" in fields else {})
        known = {field.name for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in {**former, **fields}.items()
            if name in known
        }
        return cls(**given)


RANGES = {
    "prior_strength": Range(is_above=True, most=1e12),
    "step": Range(most=1000),
    "stop_probability": Range(is_above=True, most=1),
    **dict.fromkeys(("ridge", "damping", "change_bound"), Range(most=1e9)),
    **dict.fromkeys(("num_passes", "batch_size"), Range(least=1, most=1_000_000, is_whole=True)),
    **dict.fromkeys(
        ("trained_passes", "rephrase_rows", "frames_per_pass", "num_guards"), Range(most=1_000_000, is_whole=True)
    ),
}
"""Number among the settings of an editor -> what it may be."""
UNTRAINED = "gradient (untrained)"
"""What people read where no trained editor is in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditorIdentity:
    """Which editor makes the changes of a lineage, as reports and people name it."""

    solver: str
    """What makes weights of what is asked for."""
    transform: str = UNTRAINED
    """Name of the trained editor that says what to ask for, or `gradient (untrained)`."""
    digest: str | None = None
    """SHA-256 over the trained editor's files; None without one."""

    def __str__(self) -> str:
        return self.transform if self.digest is None else f"{self.transform}, digest {self.digest[:12]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRef:
    """A file that a rank can open, with the digest its bytes must have."""

    path: str
    """Local path of the file."""
    digest: str
    """SHA-256 of the bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRows:
    """The ledger rows of the edits of one snapshot that are still active."""

    file: FileRef
    """`rows.safetensors` of that snapshot."""
    edit_ids: tuple[str, ...]
    """Which of its edits count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSpec:
    """A base model and what is measured on it."""

    ref: str
    """Folder of the model."""
    digest: str
    """SHA-256 over all that changes what it answers; another base has another."""
    task: str
    """`causal`, `seq2seq` or `classifier`."""
    config_digest: str | None = field(default=None, compare=False)
    """SHA-256 over its configurations, where `digest` is one of before and leaves them out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedFiles:
    """A trained editor; both files together have the digest that `EditorSettings.transform` names."""

    name: str
    """How people call it."""
    card: FileRef
    """What it is for (`card.json`)."""
    tensors: FileRef
    """The network (`editor.safetensors`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerPlan:
    """What a group needs besides the weights to make edits on a snapshot and to measure them."""

    rows: tuple[LedgerRows, ...]
    """Rows of every active edit, in the order in which they were made; a file may be named more than once."""
    prior: FileRef
    """Second moments of keys and gradients over plain text (`prior.safetensors`)."""
    reference: FileRef
    """Suite, plain text, and what the base answers to them (`baseline.json`)."""
    trained: TrainedFiles | None = None
    """The trained editor; None where the gradient itself is asked."""
    prior_strength: float | None = None
    """The prior's strength at this snapshot; None for that of the editor's settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPlan:
    """The weights of one snapshot of one lineage, and what edits on it are made with.

    To ask or export a snapshot the weights suffice: then `ledger` is None and no candidate can be tried.
    """

    base: BaseSpec
    """The base that its weights stand on."""
    lineage: str
    """Name of the lineage."""
    editor: EditorSettings
    """How it edits."""
    snapshot_id: str | None
    """Which snapshot; None for the base itself."""
    digest: str
    """Its digest; the base's when there is no snapshot."""
    accumulator: FileRef | None
    """The nearest stored accumulators at or below the snapshot."""
    deltas: tuple[FileRef, ...]
    """The deltas above them, in order."""
    ledger: LedgerPlan | None = None
    """What edits are made and measured with; None for a group that only answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What a group says of a snapshot once it holds it."""

    suite_keys: tuple[str, ...] = ()
    """Conflict keys of the facts that the lineage's suite asks for, sorted; none if the plan had no ledger."""
    guard_names: tuple[str, ...] = ()
    """Names that may be guards of edits, or that gates may ask about, in lower case; none if the plan had no ledger."""
    config_digest: str | None = None
    """SHA-256 over the base's configurations, if it is still to be recorded for the lineage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rekeying:
    """How the whole ledger is solved anew, see `editors.methods.rekeying`."""

    prior_strength: float
    """The prior's strength from then on."""
    edits: tuple[Edit, ...] = ()
    """Every active edit, where keys are read again; none where rows stay as they are."""
    rows: tuple[LedgerRows, ...] = ()
    """Files of other rows for every active edit, where those of before come back; none where rows stay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A candidate: what to add to and take from the snapshot that is loaded."""

    candidate_id: str
    """Names the result, so that it can be kept after later trials for the same snapshot have failed."""
    snapshot_id: str
    """The id the candidate will have; also the seed of its retention sample."""
    added: tuple[Edit, ...]
    """Edits to make. Their conflict keys differ."""
    removed_ids: tuple[str, ...]
    """Active edits whose ledger rows leave first (superseded or reverted)."""
    retained: tuple[Edit, ...]
    """Older active edits to measure retention on."""
    remade: tuple[Edit, ...] = ()
    """Active edits that are made again beside those that come or go, as they are about the same subjects: their ledger
    rows leave, and they are asked anew with the added ones. What the model cannot be asked any more stays as it is."""
    gone_keys: tuple[str, ...] = ()
    """Those of the suite's conflict keys whose fact is edited on purpose: its suite probes are left out."""
    edited_names: tuple[str, ...] = ()
    """Those of the group's names (`Loaded.guard_names`) which active edits are about, in lower case: these are neither
    guards nor asked about."""
    related_subjects: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Added edit -> subjects of earlier requests of its relation which no active edit is about."""
    rekeying: Rekeying | None = None
    """How the ledger is solved anew; then no edit is added or removed."""
    part_of: str = ""
    """A candidate that was tried on the same snapshot, with these edits and others. Where its rows can be taken without
    those of the others, no pass is made; without a name, all are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateOutcome:
    """What a group measured of a candidate. By then its weights are the loaded snapshot's again."""

    measurements: Measurements
    """The figures for the gates."""
    num_passes: int
    """Passes made over the added edits."""
    num_rows: int
    """Ledger rows of the added edits."""
    seconds: dict[str, float]
    """Wall time of each phase: `capture`, `solve`, `apply`, `measure`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptFiles:
    """The files a kept candidate leaves in the folder it was told."""

    delta: FileRef
    """`delta.safetensors`: F (I x R) and D (R x O) of every inner parameter."""
    rows: FileRef
    """`rows.safetensors`: keys, targets and row ranges of the added edits, and of those in `rewritten_ids`."""
    accumulator: FileRef | None
    """`accumulator.safetensors`, when asked for."""
    rewritten_ids: tuple[str, ...] = ()
    """Edits of earlier snapshots whose rows were written again into `rows`, which holds them from now on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedModel:
    """A snapshot that was written as a model of its own."""

    path: str
    """Its folder, as transformers reads it."""
    digest: str
    """SHA-256 over its weights: what it has as the base of another lineage."""
    num_bytes: int
    """Size of all its files together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model said."""

    prompt: str
    """The question, as it was asked."""
    text: str
    """Greedy continuation, decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteProbe:
    """One question of a lineage's locality suite."""

    probe: Probe
    """Prompt, and the answer if there is a given one."""
    subject: str | None
    """With the relation: the fact it asks for."""
    relation: str | None
    """With the subject: the fact it asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a piece of work."""

    name: str
    """What is being done, such as `pass` or `measuring`."""
    done: int = 0
    """Which one this is, from 1; 0 where the step has no parts."""
    of: int = 0
    """How many there are at most; 0 where the step has no parts."""

    def sentence(self) -> str:
        """Return it for people: `pass 7 of at most 12`."""
        return f"{self.name} {self.done} of at most {self.of}" if self.of else self.name


_listener: ContextVar[Callable[[Step], None] | None] = ContextVar("listener", default=None)


@contextmanager
def told_to(listener: Callable[[Step], None] | None) -> Iterator[None]:
    """Send the steps that are told inside to a listener; None for nobody."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(name: str, done: int = 0, of: int = 0) -> None:
    """Say which step begins; free of charge where nobody listens."""
    if (listener := _listener.get()) is not None:
        listener(Step(name=name, done=done, of=of))
