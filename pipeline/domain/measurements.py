"""What was measured of an edit and of a model. `editors/measure/scorer.py` fills these; `gates` judges them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A probe of what should have stayed as it was, and did not."""

    prompt: str
    """What was asked."""
    base: str
    """What the base says."""
    now: str
    """What the candidate says."""
    kl: float
    """KL divergence of its answer from the parent's, nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherSubjectScore:
    """What an edit did to the same question about another subject, by the first token of the answer."""

    subject: str
    """The other subject."""
    source: str
    """Where its name is from: `request` (an earlier one of the relation), `suite` or `list` (the one that ships)."""
    prompt: str
    """The edit's own prompt with that subject; of a chat its last turn and the beginning of the answer."""
    before: str
    """What the parent answered: the first token, or some words for those that moved most."""
    after: str
    """What the candidate answers, as far as `before` goes."""
    kl: float
    """KL divergence from the parent at the first token of the answer, nats."""
    is_unchanged: bool
    """Whether the most probable first token is the parent's."""
    takes_answer: bool
    """Whether the most probable first token has become that of the edit's own target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SameSubjectScore:
    """What an edit did to an active fact about its own subject that held on the parent and was made again beside it."""

    edit_id: str
    """The active edit."""
    prompt: str
    """Its prompt; of a chat its last turn."""
    holds: bool
    """Teacher-forced: whether every target token still is the argmax after its own prompt."""
    request_id: str = ""
    """The producer's id of the active edit; empty in reports from before it was told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditScore:
    """What was measured for one edit on the candidate weights."""

    edit_id: str
    """The edit that was measured."""
    edit_success: bool
    """Teacher-forced: every target token is the argmax after the prompt."""
    free_success: bool | None = None
    """Free greedy generation of the raw prompt begins with the target and stops there."""
    chat_success: bool | None = None
    """The reply to the request's question in the model's chat template says the target and not the old answer; None
    where there is no question or no template, or it was not asked."""
    generated: str = ""
    """What free generation said, for the reader of the report."""
    reply: str = ""
    """The reply to the question, for the same reader."""
    generated_before: str | None = None
    """What the parent says after the same prompt; None where it was not asked, and in earlier reports."""
    reply_before: str | None = None
    """The parent's reply to the question; None likewise."""
    wording: str | None = None
    """Another wording that was answered freely; None likewise."""
    wording_before: str | None = None
    """What the parent says after it."""
    wording_after: str | None = None
    """What the candidate says after it."""
    prob_before: float | None = None
    """Geometric mean probability of the target's tokens on the parent; None likewise."""
    moved: tuple[Moved, ...] = ()
    """Own locality probes that answer otherwise than the parent did; the first few."""
    token_fraction: float = 0.0
    """Share of target tokens that are the argmax (EasyEdit's rewrite accuracy)."""
    prob_new: float = 0.0
    """Geometric mean probability of the target's tokens."""
    prob_true: float | None = None
    """The same of `target_true`, if the request gave one."""
    same_context: tuple[bool, ...] = ()
    """Teacher-forced success on each rephrase that names the subject behind the same text as the prompt."""
    other_context: tuple[bool, ...] = ()
    """The same on each rephrase that names the subject behind other text."""
    unnamed: tuple[bool, ...] = ()
    """The same on each rephrase that does not name the subject."""
    row_rephrases: tuple[bool, ...] = ()
    """The same on each rephrase that was an edit row; it is in none of the classes above."""
    locality: tuple[bool, ...] = ()
    """For each own locality probe: answers as the parent did."""
    locality_base: tuple[bool, ...] = ()
    """For each own locality probe: answers as the base did."""
    locality_kl: float | None = None
    """Mean KL divergence from the parent on the own locality probes, nats."""
    other_subjects: tuple[OtherSubjectScore, ...] = ()
    """The edit's own prompt asked about other subjects, compared with the parent; none where it names no subject."""
    same_subject: tuple[SameSubjectScore, ...] = ()
    """Active facts about the same subject; none where there are none, and in earlier reports."""
    portability: tuple[bool, ...] = ()
    """Teacher-forced success on each portability probe."""
    names_subject: bool | None = None
    """Whether the edit's own prompt names its subject as whole words, without which it has no row at the subject; None
    where the request has none, and in earlier reports."""

    @property
    def rephrases(self) -> tuple[bool, ...]:
        """Teacher-forced success on each rephrase that names the subject and was no edit row."""
        return self.same_context + self.other_context

    @property
    def other_subjects_kl(self) -> float | None:
        """Mean KL divergence from the parent over the other subjects, nats; None where none was asked about."""
        return mean(other.kl for other in self.other_subjects)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelScore:
    """What was measured of a whole model, edited or not."""

    suite_unchanged: float | None = None
    """Share of the lineage's suite that answers as the base did."""
    suite_kl: float | None = None
    """Mean KL divergence from the base on the suite, nats."""
    num_suite: int = 0
    """Suite probes measured."""
    num_suite_left_out: int = 0
    """Suite probes whose fact was edited on purpose."""
    retention: float | None = None
    """Teacher-forced success of the sampled older active edits; None when there are none."""
    num_retained: int = 0
    """Older active edits sampled."""
    perplexity: float | None = None
    """Perplexity of plain text, or of the suite's targets where the model is no language model by itself."""
    accuracy: float | None = None
    """Accuracy of a classifier on the lineage's suite; then there is no perplexity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """Everything a gate is judged on."""

    edits: tuple[EditScore, ...]
    """One row an edit of the batch."""
    candidate: ModelScore
    """The edited model."""
    parent: ModelScore
    """What it was edited from, on the same probes."""
    base: ModelScore
    """The base, from the lineage's reference."""
    kl_from_parent: float | None = None
    """Mean KL divergence of the suite's answers from the parent's, nats."""
    change_norm: float | None = None
    """Largest over inner parameters of the Frobenius norm of this change over that of the base weight."""
    probe_set_digest: str = ""
    """SHA-256 of the probes asked."""
    moved: tuple[Moved, ...] = ()
    """Probes of the suite that answer otherwise than the parent did; the first few."""
    prior_strength: float | None = None
    """The prior's strength, where it is not that of the editor's settings or the ledger was solved anew."""
    scaled_back: float | None = None
    """The least part that was left of what was asked of an inner parameter, where the change would have passed the
    editor's bound; None where nothing was scaled."""
    solved_anew: float | None = None
    """Where the ledger was solved anew: norm of the change over that of the shift before, the largest of any inner
    parameter."""
    remade: tuple[str, ...] = ()
    """Ids of the active edits that were made again beside the batch, as they are about the same subjects."""

    @classmethod
    def from_stored(cls, document: Mapping[str, Any]) -> Self:
        """Read what a report in JSON holds; what it lacks was not measured, and what nobody knows is left out."""
        parts: dict[str, Any] = {name: _record(ModelScore, document[name]) for name in ("candidate", "parent", "base")}
        edits = tuple(_edit_score(score) for score in document["edits"])
        return _record(cls, {**document, **parts, "edits": edits, "moved": _moved(document)})


def _moved(document: Mapping[str, Any]) -> tuple[Moved, ...]:
    return tuple(_record(Moved, one) for one in document.get("moved") or ())


def _edit_score(stored: Mapping[str, Any]) -> EditScore:
    others = tuple(_record(OtherSubjectScore, other) for other in stored.get("other_subjects") or ())
    same = tuple(_record(SameSubjectScore, one) for one in stored.get("same_subject") or ())
    return _record(EditScore, {**stored, "other_subjects": others, "same_subject": same, "moved": _moved(stored)})


def _record(kind: type[T], stored: Mapping[str, Any]) -> T:
    """Return a record with those of some stored fields that it knows."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in stored.items() if key in known})


def share(flags: Iterable[bool | None]) -> float | None:
    """Return the share of true values among those that are not None; None if there are none."""
    return mean(flags)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
