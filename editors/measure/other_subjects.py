"""What an edit does to the same question about other subjects, compared with what it was edited from.

Requests rarely bring neighbours, so gates ask the edit's own prompt about other subjects. Each costs one short forward,
read at one position: the first token of the answer. Some words are generated only for what moved most.

Legend: T target tokens of one sequence; here always 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from editors.measure.losses import Reading
from editors.measure.prefix_cache import PrefixCache
from editors.measure.rounds import Ask, Talk
from editors.measure.scoring import Change, compared, readings
from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from pipeline.domain.edits import Edit
from pipeline.domain.errors import InvalidInput
from pipeline.domain.language.joining import joined
from pipeline.domain.measurements import OtherSubjectScore
from pipeline.domain.prompts import Prompt

NUM_TOLD = 8
"""Most answers of a candidate that are generated for people: of each edit the one that moved most."""
TOLD_TOKENS = 8
"""Length of such an answer."""
TOLD_FROM = 0.2
"""Nats from which an answer is worth telling."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherSubject:
    """One question about another subject than an edit's own."""

    name: str
    """The other subject."""
    source: str
    """Where its name is from: `request`, `suite` or `list`."""
    prompt: Prompt
    """The edit's own prompt with that name."""


Others = Mapping[str, Sequence[OtherSubject]]
"""Edit id -> what is asked about other subjects."""


class OtherSubjects:
    """Asks a parent and its candidates about other subjects; what the parent said is kept until it changes.

    Every rank that holds the model has to make the same calls.

    Args:
        model: holds the parent when it is observed, a candidate when that is measured.
    """

    def __init__(self, model: EditableModel) -> None:
        self._model, self._prefixes = model, PrefixCache(model)
        self._parent: dict[Prompt, Reading] = {}

    def reset(self) -> None:
        """Forget what the parent said, because there is another one."""
        self._parent.clear()

    def observe_parent(self, others: Others) -> None:
        """Ask the parent, which the model is now, what it has not been asked yet."""
        prompts = [asked.prompt for of_edit in others.values() for asked in of_edit]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._parent]
        found = readings(self._model, self._prefixes.prepare([self._encoded(prompt) for prompt in new]))
        self._parent |= zip(new, found, strict=True)

    def talk(self, edits: Sequence[Edit], others: Others) -> Talk[dict[str, tuple[OtherSubjectScore, ...]]]:
        """Return what the candidate, which the model is now, makes of them, by edit id; the parent has been observed.

        Args:
            edits: the edits of the batch.
            others: what is asked.
        """
        asked = [(edit, one) for edit in edits for one in others.get(edit.edit_id, ())]
        before = [self._parent[one.prompt] for _, one in asked]
        prepared = self._prefixes.prepare([self._encoded(one.prompt) for _, one in asked])
        now, [changes] = compared(self._model, prepared, [before])
        first = {edit.edit_id: self._first_token(edit) for edit, _ in asked}
        scores = [
            self._score(one, was, reading, change, first[edit.edit_id])
            for (edit, one), was, reading, change in zip(asked, before, now, changes, strict=True)
        ]
        yield from self._tell(asked, scores)
        found: dict[str, tuple[OtherSubjectScore, ...]] = {}
        for (edit, _), score in zip(asked, scores, strict=True):
            found[edit.edit_id] = (*found.get(edit.edit_id, ()), score)
        return found

    def _score(
        self, asked: OtherSubject, before: Reading, now: Reading, change: Change, target: int
    ) -> OtherSubjectScore:
        was, is_now = int(before.argmax_T[0]), int(now.argmax_T[0])
        return OtherSubjectScore(
            subject=asked.name,
            source=asked.source,
            prompt=shown(asked.prompt),
            before=self._model.decode([was]).strip(),
            after=self._model.decode([is_now]).strip(),
            kl=change.kl,
            is_unchanged=change.is_unchanged,
            takes_answer=not change.is_unchanged and is_now == target,
        )

    def _tell(self, asked: Sequence[tuple[Edit, OtherSubject]], scores: list[OtherSubjectScore]) -> Talk[None]:
        """Put some words in the place of the first token where an edit moved another subject most."""
        worst: dict[str, int] = {}
        for place, ((edit, _), score) in enumerate(zip(asked, scores, strict=True)):
            if score.kl >= TOLD_FROM and score.kl > (scores[worst[edit.edit_id]].kl if edit.edit_id in worst else 0):
                worst[edit.edit_id] = place
        places = sorted(worst.values(), key=lambda place: -scores[place].kl)[:NUM_TOLD]
        prompts = [self._model.encode_prompt(asked[place][1].prompt) for place in places]
        said = yield [
            Ask(prompt_ids=prompt, most=TOLD_TOKENS, is_before=is_before)
            for is_before in (True, False)
            for prompt in prompts
        ]
        for place, was, is_now in zip(places, said[: len(places)], said[len(places) :], strict=True):
            told = scores[place]
            scores[place] = replace(
                told,
                before=self._model.decode(was).strip() or told.before,
                after=self._model.decode(is_now).strip() or told.after,
            )

    def _encoded(self, prompt: Prompt) -> Encoded:
        # What comes next is read after the prompt alone, so that the token that stands for a target is never looked at.
        return Encoded(prompt_ids=self._model.encode_prompt(prompt), target_ids=(0,))

    def _first_token(self, edit: Edit) -> int:
        return self._model.encode_pair(edit.request.own_prompt, edit.request.target_new).target_ids[0]


def can_ask(model: EditableModel, prompt: Prompt) -> bool:
    """Return whether a model takes a prompt: it is not too long, and the tokenizer knows its words."""
    try:
        model.encode_prompt(prompt)
    except InvalidInput:
        return False
    return True


def shown(prompt: Prompt) -> str:
    """Return a prompt as people read it: of a chat the last turn, and how the answer begins."""
    return prompt if isinstance(prompt, str) else joined(prompt.question, prompt.begun)
