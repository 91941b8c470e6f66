"""What a model makes of edits: the one way in which gates and evaluation measure them.

measurer = EditMeasurer(model)
measurer.observe_base(edits)            # then edit the model
found = measurer.measure([EditQuestions(edit=edit, rephrases=edit.request.unseen_rephrases(0)) for edit in edits])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from editors.measure.free_answers import FreeAnswer, free_answers
from editors.measure.losses import Reading
from editors.measure.prefix_cache import MAX_BYTES, PrefixCache
from editors.measure.questions import (
    ChatReply,
    EditMeasurement,
    EditQuestions,
    NeighbourMeasurement,
    PromptMeasurement,
)
from editors.measure.reference import own_answers
from editors.measure.rounds import Talk, answered
from editors.measure.scoring import Change, Score, compared, readings, scores
from editors.models.families import EditableModel, Pair
from editors.models.tokens import Encoded
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.prompts import ChatPrompt, Prompt
from pipeline.domain.wordings import Wording, is_right

T = TypeVar("T")
Readings = Mapping[str, Sequence[Reading]]
"""Edit id -> readings of its locality probes, in order."""
Changes = Mapping[str, Sequence[tuple[Change, Change | None]]]
"""Edit id -> how each of its locality probes changed from the base, and from the parent where that is told."""

PREPARED_AT_ONCE = 512
"""Most sequences that are prepared together, which bounds the memory of what enters their first edited block."""


@dataclass(kw_only=True, slots=True)
class Answers:
    """What a model said of many edits together, so that nothing is asked twice."""

    scores: dict[Pair, Score]
    """The teacher-forced scores of targets."""
    replies: dict[ChatPrompt, str]
    """Replies to questions in a chat."""
    free: dict[Pair, FreeAnswer]
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

    def of(self, model: EditableModel, *, cache_bytes: int = MAX_BYTES) -> EditMeasurer:
        """Return one that asks another model of the same base, and remembers what this one does."""
        made = EditMeasurer(model, cache_bytes=cache_bytes)
        made._base = dict(self._base)
        return made

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
            sequences = own_answers(self._model, probes)
            pairs = iter(zip(sequences, readings(self._model, self._prefixes.prepare(sequences)), strict=True))
            self._base |= {edit.edit_id: tuple(next(pairs) for _ in edit.request.locality) for edit in part}

    def base_readings(self, edits: Sequence[Edit]) -> dict[str, tuple[Reading, ...]]:
        """Return what the base said along its own answers to the neighbours of edits."""
        return {edit.edit_id: tuple(reading for _, reading in self._base[edit.edit_id]) for edit in edits}

    def base_answers(self, edit: Edit) -> tuple[Encoded, ...]:
        """Return the base's own answers to the neighbours of an edit, each behind its prompt."""
        return tuple(sequence for sequence, _ in self._base[edit.edit_id])

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
        return [
            found
            for part in _parts(questions, PREPARED_AT_ONCE)
            for found in answered(self._model, self.talk(part, self.changes([one.edit for one in part], parent)))
        ]

    def changes(self, edits: Sequence[Edit], parent: Readings | None = None) -> Changes:
        """Return how the model differs now at the neighbours of edits, which `observe_base` has seen.

        Args:
            edits: whose neighbours are asked.
            parent: as of `measure`.
        """
        found: dict[str, Sequence[tuple[Change, Change | None]]] = {}
        for part in _parts(edits, PREPARED_AT_ONCE):
            asked = [pair for edit in part for pair in self._base[edit.edit_id]]
            earlier = [[reading for _, reading in asked]]
            earlier += [] if parent is None else [[reading for edit in part for reading in parent[edit.edit_id]]]
            prepared = self._prefixes.prepare([sequence for sequence, _ in asked])
            _, [from_base, *others] = compared(self._model, prepared, earlier)
            from_parent: Sequence[Change | None] = others[0] if others else [None] * len(from_base)
            pairs = iter(zip(from_base, from_parent, strict=True))
            found |= {edit.edit_id: [next(pairs) for _ in self._base[edit.edit_id]] for edit in part}
        return found

    def talk(self, questions: Sequence[EditQuestions], changes: Changes) -> Talk[list[EditMeasurement]]:
        """Ask what `measure` does, of edits whose neighbours' changes are known."""
        scored = self.scores([pair for one in questions for pair in (*one.targets, *one.rows, *one.alternatives)])
        asked: list[ChatPrompt] = []
        if self._model.has_chat_template:
            asked += dict.fromkeys(one.question for one in questions if one.question is not None)
        in_chat: dict[Pair, bool] = {}
        instead_of: dict[Pair, str | None] = {}
        for one in questions:
            wanted = {one.own} if one.in_chat else set()
            in_chat |= {pair: pair in wanted or in_chat.get(pair, False) for pair in one.answered_freely}
            instead_of |= dict.fromkeys(one.answered_freely, one.edit.request.target_true)
        free, replies = yield from free_answers(
            self._model, list(in_chat), in_chat=list(in_chat.values()), questions=asked, instead_of=instead_of
        )
        answers = Answers(scores=scored, replies=replies, free=dict(zip(in_chat, free, strict=True)))
        return [_measurement(one, answers, changes[one.edit.edit_id]) for one in questions]


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
        prefers_true = None if true is None else true.is_likelier_than(answers.scores[probe.prompt, request.target_new])
        return NeighbourMeasurement(from_base=from_base, from_parent=from_parent, prefers_true=prefers_true)

    return EditMeasurement(
        edit_id=asked.edit.edit_id,
        own=after(asked.own),
        same_context=tuple(map(after, asked.worded(Wording.same_context))),
        other_context=tuple(map(after, asked.worded(Wording.other_context))),
        unnamed=tuple(map(after, asked.worded(Wording.unnamed))),
        row_rephrases=tuple(map(after, asked.rows)),
        reply=_reply(asked, answers),
        portability=tuple(after(pair, is_target=False) for pair in asked.portability),
        neighbours=tuple(
            after_neighbour(probe, *change) for probe, change in zip(request.locality, changes, strict=True)
        ),
    )


def _reply(asked: EditQuestions, answers: Answers) -> ChatReply | None:
    if asked.question is None or asked.question not in answers.replies:
        return None
    said = answers.replies[asked.question]
    return ChatReply(question=asked.question.question, text=said, is_right=is_right(said, asked.edit.request))


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
