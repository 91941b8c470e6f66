"""What a model makes of edits: the one way in which gates and evaluation measure them.

    measurer = EditMeasurer(model)
    measurer.observe_base(edits)            # then edit the model
    found = measurer.measure([EditQuestions(edit=edit, rephrases=edit.request.unseen_rephrases(0)) for edit in edits])

Figures are definitions of MEND, ROME and EasyEdit; `editors.evaluation.metrics` has the glossary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from editors.measure.free_answers import AT_ONCE, FreeAnswer, chat_replies, free_answers
from editors.measure.losses import Reading
from editors.measure.prefix_cache import MAX_BYTES, PrefixCache
from editors.measure.reference import own_answers
from editors.measure.scoring import Change, Score, compared, readings, scores
from editors.models.families import EditableModel, Pair
from editors.models.tokens import Encoded
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.prompts import ChatPrompt, Prompt
from pipeline.domain.wordings import Wording, is_right, wording_of

T = TypeVar("T")
Extent = Literal["nothing", "prompt", "all"]
"""How much of an edit something is asked of: nothing, the edit's own prompt, or everything with a target."""
Readings = Mapping[str, Sequence[Reading]]
"""Edit id -> readings of its locality probes, in order."""

PREPARED_AT_ONCE = 512
"""Most sequences that are prepared together, which bounds the memory of what enters their first edited block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditQuestions:
    """What is asked of one edit; its locality and portability probes always are."""

    edit: Edit
    """The edit that the model is asked about."""
    rephrases: tuple[str, ...]
    """The rephrases that no editor has seen, after which its target should follow too."""
    row_rephrases: tuple[str, ...] = ()
    """The rephrases that were edit rows; what follows after them is told apart."""
    compared: Extent = "nothing"
    """After which prompts the probabilities of `target_new` and of what was true before are compared; after neighbours
    with a given answer too if all."""
    free: Extent = "nothing"
    """Which prompts are answered freely."""
    in_chat: bool = True
    """Whether the free answers are also asked for in the chat template."""
    replies: bool = False
    """Whether the request's question is asked in a chat, if it has one."""

    @property
    def own(self) -> Pair:
        """The edit's prompt and target."""
        return self.edit.request.own_prompt, self.edit.request.target_new

    def worded(self, *wordings: Wording) -> list[Pair]:
        """Return the rephrases of some classes, each with the edit's target, in the order of the request."""
        return self._with_target(text for text in self.rephrases if wording_of(text, self.edit.request) in wordings)

    @property
    def rows(self) -> list[Pair]:
        """The rephrases that were edit rows, each with the edit's target."""
        return self._with_target(self.row_rephrases)

    @property
    def question(self) -> ChatPrompt | None:
        """What is asked in a chat; None where it is not asked, or nobody said how."""
        return self.edit.request.chat_question if self.replies and self.edit.request.has_question else None

    @property
    def portability(self) -> list[Pair]:
        """The portability probes that have a target."""
        return [(probe.prompt, probe.target) for probe in self.edit.request.portability if probe.target is not None]

    @property
    def targets(self) -> list[Pair]:
        """Everything whose target should follow from the edit."""
        return [self.own, *self._with_target(self.rephrases), *self.portability]

    @property
    def answered_freely(self) -> list[Pair]:
        """What is asked by free generation."""
        return {"nothing": [], "prompt": [self.own], "all": self.targets}[self.free]

    @property
    def alternatives(self) -> list[Pair]:
        """The targets that others are compared with, and those that neighbours' given answers are."""
        request = self.edit.request
        named = self.worded(Wording.same_context, Wording.other_context)
        prompts = {"nothing": [], "prompt": [self.own], "all": [self.own, *named]}[self.compared]
        true = [(prompt, request.target_true) for prompt, _ in prompts if request.target_true is not None]
        probes = request.locality if self.compared == "all" else ()
        answered = [(probe.prompt, probe.target) for probe in probes if probe.target is not None]
        return [*true, *answered, *((prompt, request.target_new) for prompt, _ in answered)]

    def _with_target(self, texts: Iterable[str]) -> list[Pair]:
        return [(text, self.edit.request.target_new) for text in texts]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptMeasurement:
    """How a model takes to a target after one prompt."""

    score: Score
    """The target's score."""
    true: Score | None = None
    """The score of what was true before the edit; None where there is none, or it was not asked."""
    free: FreeAnswer | None = None
    """What the model says freely; None where it was not asked."""

    @property
    def prefers_new(self) -> bool | None:
        """Whether P(new) > P(true), geometric means over the tokens; None where they were not compared."""
        return None if self.true is None else _is_likelier(self.score, self.true)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """What a model replies to a request's question."""

    text: str
    """The reply, up to 32 tokens."""
    is_right: bool
    """Whether it says the new answer and not the old one; see `wordings.is_right`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourMeasurement:
    """What became of one locality probe, along the base's own answer to it."""

    from_base: Change
    """How the model differs from the base."""
    from_parent: Change | None = None
    """How it differs from what it was edited from; None where that is not told."""
    prefers_true: bool | None = None
    """Whether P(its given answer) > P(the edit's target); None where none is given, or they were not compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditMeasurement:
    """Everything that was measured of one edit."""

    edit_id: str
    """The edit's id."""
    own: PromptMeasurement
    """After its own prompt."""
    same_context: tuple[PromptMeasurement, ...] = ()
    """After each unseen rephrase that names the subject behind the same text as the prompt."""
    other_context: tuple[PromptMeasurement, ...] = ()
    """After each unseen rephrase that names the subject behind other text."""
    unnamed: tuple[PromptMeasurement, ...] = ()
    """After each unseen rephrase that does not name the subject."""
    row_rephrases: tuple[PromptMeasurement, ...] = ()
    """After each rephrase that was an edit row."""
    reply: ChatReply | None = None
    """The reply to the request's question in a chat; None where it has none, it was not asked, or the model has no chat
    template."""
    portability: tuple[PromptMeasurement, ...] = ()
    """After each portability probe that has a target."""
    neighbours: tuple[NeighbourMeasurement, ...] = ()
    """What was measured at each locality probe."""

    @property
    def rephrases(self) -> tuple[PromptMeasurement, ...]:
        """After each unseen rephrase that names the subject."""
        return *self.same_context, *self.other_context


@dataclass(kw_only=True, slots=True)
class Answers:
    """What a model said of many edits together, so that nothing is asked twice."""

    scores: dict[Pair, Score]
    """The teacher-forced scores of targets."""
    replies: dict[ChatPrompt, str]
    """Replies to questions in a chat."""
    free: dict[Pair, FreeAnswer] = field(default_factory=dict)
    """Free answers to prompts."""


class EditMeasurer:
    """Asks a model about edits, and remembers what the base said to their neighbours.

    Every rank that holds the model has to make the same calls.

    Args:
        model: as what it answers when asked: the base, a parent, or a candidate.
        cache_bytes: most memory for what enters the first edited block of the sequences that are asked.
    """

    def __init__(self, model: EditableModel, *, cache_bytes: int = MAX_BYTES) -> None:
        self._model, self._prefixes = model, PrefixCache(model, max_bytes=cache_bytes)
        self._base: dict[str, tuple[tuple[Encoded, Reading], ...]] = {}

    def __len__(self) -> int:
        """How many edits' neighbours are remembered."""
        return len(self._base)

    def forget(self) -> None:
        """Forget what the base said."""
        self._base.clear()

    def observe_base(self, edits: Sequence[Edit]) -> None:
        """Ask the base, as which the model answers now, for the neighbours of edits that are not remembered."""
        new = [edit for edit in edits if edit.edit_id not in self._base]
        for part in _parts(new, PREPARED_AT_ONCE):
            probes = [probe for edit in part for probe in edit.request.locality]
            sequences = [answer for some in _parts(probes, AT_ONCE) for answer in own_answers(self._model, some)]
            pairs = iter(zip(sequences, readings(self._model, self._prefixes.prepare(sequences)), strict=True))
            self._base |= {edit.edit_id: tuple(next(pairs) for _ in edit.request.locality) for edit in part}

    def base_readings(self, edits: Sequence[Edit]) -> dict[str, tuple[Reading, ...]]:
        """Return what the base said along its own answers to the neighbours of edits."""
        return {edit.edit_id: tuple(reading for _, reading in self._base[edit.edit_id]) for edit in edits}

    def readings(self, edits: Sequence[Edit]) -> dict[str, tuple[Reading, ...]]:
        """Return what the model says now along the base's answers to the neighbours of edits."""
        sequences = [sequence for edit in edits for sequence, _ in self._base[edit.edit_id]]
        found = iter(readings(self._model, self._prefixes.prepare(sequences)))
        return {edit.edit_id: tuple(next(found) for _ in self._base[edit.edit_id]) for edit in edits}

    def scores(self, pairs: Sequence[Pair]) -> dict[Pair, Score]:
        """Return the teacher-forced scores of prompts with targets, each pair asked once."""
        distinct = list(dict.fromkeys(pairs))
        sequences = [self._model.encode_pair(prompt, target) for prompt, target in distinct]
        found = [
            score
            for part in _parts(sequences, PREPARED_AT_ONCE)
            for score in scores(self._model, self._prefixes.prepare(part))
        ]
        return dict(zip(distinct, found, strict=True))

    def measure(self, questions: Sequence[EditQuestions], *, parent: Readings | None = None) -> list[EditMeasurement]:
        """Return what the model makes of each edit now; `observe_base` has seen them.

        Args:
            questions: what is asked.
            parent: `readings` of what the model was edited from, if neighbours are to be compared with it.
        """
        return [found for part in _parts(questions, PREPARED_AT_ONCE) for found in self._measured(part, parent)]

    def _measured(self, questions: Sequence[EditQuestions], parent: Readings | None) -> list[EditMeasurement]:
        asked = (pair for one in questions for pair in (*one.targets, *one.rows, *one.alternatives))
        answers = Answers(scores=self.scores(list(asked)), replies=self._replies(questions))
        answers.free |= self._free_answers(questions, answers.replies)
        changes = self._changes([one.edit for one in questions], parent)
        return [_measurement(one, answers, of_edit) for one, of_edit in zip(questions, changes, strict=True)]

    def _replies(self, questions: Sequence[EditQuestions]) -> dict[ChatPrompt, str]:
        if not self._model.has_chat_template:
            return {}
        asked = list(dict.fromkeys(one.question for one in questions if one.question is not None))
        return dict(zip(asked, chat_replies(self._model, asked), strict=True))

    def _free_answers(
        self, questions: Sequence[EditQuestions], replies: Mapping[ChatPrompt, str]
    ) -> dict[Pair, FreeAnswer]:
        in_chat: dict[Pair, bool] = {}
        for one in questions:
            in_chat |= {pair: one.in_chat or in_chat.get(pair, False) for pair in one.answered_freely}
        found = free_answers(self._model, list(in_chat), in_chat=list(in_chat.values()), replies=replies)
        return dict(zip(in_chat, found, strict=True))

    def _changes(self, edits: Sequence[Edit], parent: Readings | None) -> list[list[tuple[Change, Change | None]]]:
        """Return, for each edit and neighbour, the change from the base and from the parent."""
        asked = [pair for edit in edits for pair in self._base[edit.edit_id]]
        earlier = [[reading for _, reading in asked]]
        earlier += [] if parent is None else [[reading for edit in edits for reading in parent[edit.edit_id]]]
        prepared = self._prefixes.prepare([sequence for sequence, _ in asked])
        _, [from_base, *others] = compared(self._model, prepared, earlier)
        from_parent: Sequence[Change | None] = others[0] if others else [None] * len(from_base)
        pairs = iter(zip(from_base, from_parent, strict=True))
        return [[next(pairs) for _ in self._base[edit.edit_id]] for edit in edits]


def _measurement(
    asked: EditQuestions, answers: Answers, changes: Sequence[tuple[Change, Change | None]]
) -> EditMeasurement:
    """Return the record of one edit out of what was found about many."""
    request, alternatives, freely = asked.edit.request, set(asked.alternatives), set(asked.answered_freely)

    def compared_with(prompt: Prompt, target: str | None) -> Score | None:
        return answers.scores[prompt, target] if target is not None and (prompt, target) in alternatives else None

    def after(pair: Pair, *, is_target: bool = True) -> PromptMeasurement:
        true = compared_with(pair[0], request.target_true) if is_target else None
        return PromptMeasurement(
            score=answers.scores[pair], true=true, free=answers.free[pair] if pair in freely else None
        )

    def after_neighbour(probe: Probe, from_base: Change, from_parent: Change | None) -> NeighbourMeasurement:
        true = compared_with(probe.prompt, probe.target)
        prefers_true = None if true is None else _is_likelier(true, answers.scores[probe.prompt, request.target_new])
        return NeighbourMeasurement(from_base=from_base, from_parent=from_parent, prefers_true=prefers_true)

    said = answers.replies.get(asked.question) if asked.question is not None else None
    return EditMeasurement(
        edit_id=asked.edit.edit_id,
        own=after(asked.own),
        same_context=tuple(map(after, asked.worded(Wording.same_context))),
        other_context=tuple(map(after, asked.worded(Wording.other_context))),
        unnamed=tuple(map(after, asked.worded(Wording.unnamed))),
        row_rephrases=tuple(map(after, asked.rows)),
        reply=None if said is None else ChatReply(text=said, is_right=is_right(said, request)),
        portability=tuple(after(pair, is_target=False) for pair in asked.portability),
        neighbours=tuple(
            after_neighbour(probe, *change) for probe, change in zip(request.locality, changes, strict=True)
        ),
    )


def _is_likelier(one: Score, other: Score) -> bool:
    return one.mean_log_probability > other.mean_log_probability


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
