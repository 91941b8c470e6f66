"""Edits as training uses them: the edit, its rephrases, and what has to stay, all as token ids."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from editors.measure.losses import MAX_READINGS, TEXT_TOKENS, Reading
from editors.measure.prefix_cache import PrefixCache
from editors.measure.scoring import Prepared, readings
from editors.measure.spill_file import SpillFile
from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from pipeline.domain.edits import Edit
from pipeline.domain.errors import InvalidInput
from pipeline.domain.language.spelling import normalised


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An edit to learn from or to be judged by, as token ids."""

    edit: Encoded
    """The prompt with the new target."""
    rephrases: tuple[Encoded, ...]
    """Other prompts with the same new target; at least one."""
    locality: tuple[Encoded, ...]
    """Neighbouring prompts with the answers that have to stay; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """What a run learns from, and what it is judged by; no fact is in both."""

    training: tuple[Example, ...]
    """Edits to learn from."""
    held_out: tuple[Example, ...]
    """Edits to validate on."""
    text: tuple[Encoded, ...]
    """Lines of plain text, in which the probabilities of every token have to stay."""


def split(
    edits: Sequence[Edit], held_out: Sequence[Edit], *, num_held_out: int, new_relations: Collection[str] = ()
) -> tuple[list[Edit], list[Edit]]:
    """Return the edits to learn from and those to validate on, which are the last edits where none are given.

    Edits without rephrases are in neither. No edit to learn from shares its subject or prompt with a held-out one, or
    is about a new relation.
    """
    usable = [edit for edit in edits if edit.request.rephrases]
    judged = [edit for edit in held_out if edit.request.rephrases][:num_held_out]
    if not held_out:
        cut = max(len(usable) - num_held_out, (len(usable) + 1) // 2)
        usable, judged = usable[:cut], usable[cut:]
    known = {about for edit in judged for about in _about(edit)}
    taught = [edit for edit in usable if not known & _about(edit) and edit.request.relation not in new_relations]
    return taught, judged


def make_examples(
    model: EditableModel,
    edits: Sequence[Edit],
    held_out: Sequence[Edit],
    text: str,
    *,
    num_held_out: int,
    has_subjects: bool,
    new_relations: Collection[str] = (),
) -> Examples:
    """Encode everything that a run learns from and is judged by.

    Args:
        model: the base.
        edits: edits to learn from, and to validate on where `held_out` is empty.
        held_out: edits to validate on.
        text: plain text, of which each line is taken by itself.
        num_held_out: most edits to validate on.
        has_subjects: whether to look up where subjects end, and to leave out edits whose prompt does not name theirs;
            without that, every token of an encoder is a key.
        new_relations: relations whose edits are not learnt from.

    Raises:
        InvalidInput: if there is nothing to learn from or to validate on, or the model cannot give a target.
    """
    chosen = split(edits, held_out, num_held_out=num_held_out, new_relations=new_relations)
    require_both(chosen, "rephrases", edits, held_out)
    taught, judged = (tuple(_example(model, edit, has_subjects) for edit in group) for group in chosen)
    if has_subjects:
        taught, judged = (tuple(one for one in group if one.edit.subject_end is not None) for group in (taught, judged))
        require_both((taught, judged), "a subject that stands in the prompt", edits, held_out)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return Examples(
        training=taught,
        held_out=judged,
        text=tuple(model.encode_text(line, max_tokens=TEXT_TOKENS) for line in lines),
    )


def require_both(
    groups: Sequence[Sequence[object]], needed: str, edits: Sequence[Edit], held_out: Sequence[Edit]
) -> None:
    """Make sure that there is something to learn from and something to validate on.

    Raises:
        InvalidInput: saying what such edits need.
    """
    taught, judged = map(len, groups)
    if not taught or not judged:
        raise InvalidInput(
            f"expected edits with {needed} to train and to validate on, got {taught} and {judged} "
            f"out of {len(edits)} and {len(held_out)}"
        )


class Reader:
    """A cache of what enters the first edited block for a sequence, and of what the base answers to it.

    Both are computed for each sequence by itself. So the numbers do not depend on the sequences around it, and a
    resumed run, whose cache is empty, finds the same bits.

    Args:
        model: the base.
        max_bytes: most memory for what enters the first edited block.
        disk_bytes: most disk for what memory has no room for.
    """

    def __init__(self, model: EditableModel, *, max_bytes: int, disk_bytes: int = 0) -> None:
        self._model = model
        disk = SpillFile(max_bytes=disk_bytes) if disk_bytes else None
        self._prefixes = PrefixCache(model, max_bytes=max_bytes, disk=disk)
        self._readings: OrderedDict[Encoded, Reading] = OrderedDict()

    def prepare(self, sequences: Sequence[Encoded], *, max_tokens: int | None = None) -> Prepared:
        """Return the sequences as batches that need only the blocks from the first edited one on."""
        return self._prefixes.prepare_alone(sequences, max_tokens=max_tokens)

    def reading(self, sequence: Encoded) -> Reading:
        """Return what the base answers to a sequence; no side branch may be entered."""
        if sequence not in self._readings:
            self._readings[sequence] = readings(self._model, self.prepare([sequence]))[0]
            if len(self._readings) > MAX_READINGS:
                self._readings.popitem(last=False)
        return self._readings[sequence]


def _example(model: EditableModel, edit: Edit, has_subjects: bool) -> Example:
    request = edit.request
    subject = request.subject if has_subjects else None
    return Example(
        edit=model.encode_pair(request.own_prompt, request.target_new, subject),
        rephrases=tuple(model.encode_pair(text, request.target_new, subject) for text in request.rephrases),
        locality=tuple(model.encode_pair(item.prompt, item.target) for item in request.locality if item.target),
    )


def _about(edit: Edit) -> set[str]:
    """Return what an edit must not share with a held-out one: its prompt and its subject."""
    request = edit.request
    return {normalised(text) for text in (request.prompt, request.subject) if text}
