"""What a model says in words to a few edits of a batch: for people who compare a candidate with its parent.

Nothing is judged by it, so it is short: the edits of a usual batch, a few tokens, and of neighbours only those that
moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from editors.measure.free_answers import REPLY_TOKENS
from editors.measure.rounds import Ask, Talk
from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from pipeline.domain.edits import Edit
from pipeline.domain.measurements import EditScore, Moved
from pipeline.domain.prompts import Prompt
from pipeline.domain.wordings import can_be_asked

Probed = tuple[Prompt, Encoded, float]
"""A probe that moved: its prompt, the same with the base's answer, and how far the answer moved, in nats."""

NUM_SHOWN = 32
"""Edits of a batch whose answers are shown: all of one of the default size."""
NUM_MOVED = 8
"""Probes that moved whose answers are shown, of the suite and of the edits' own each."""
SHOWN_TOKENS = 12
"""Tokens of a shown answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a model says to one edit."""

    own: str | None = None
    """After its own prompt; None where that was not asked."""
    wording: str | None = None
    """After its first rephrase that is no edit row."""
    reply: str | None = None
    """To its question in a chat."""


def said_before(model: EditableModel, edits: Sequence[Edit]) -> Talk[dict[str, Said]]:
    """Ask about edits as before the change, and return by edit id what was said to prompt, wording and question.

    Args:
        model: the model as it is now.
        edits: at most `NUM_SHOWN`.
    """
    return _said(model, edits, is_before=True)


def wordings_said(model: EditableModel, edits: Sequence[Edit]) -> Talk[dict[str, Said]]:
    """Ask about another wording of edits, of which the rest is known, and return what is said now, by edit id.

    Args:
        model: the model as it is now.
        edits: at most `NUM_SHOWN`.
    """
    return _said(model, edits, is_before=False)


def _said(model: EditableModel, edits: Sequence[Edit], *, is_before: bool) -> Talk[dict[str, Said]]:
    asked: dict[tuple[str, str], Prompt] = {}
    questions: dict[tuple[str, str], Prompt] = {}
    for edit in edits:
        if wordings := edit.request.unseen_rephrases(0):
            asked[edit.edit_id, "wording"] = wordings[0]
        if not is_before:
            continue
        asked[edit.edit_id, "own"] = edit.request.own_prompt
        question = edit.request.chat_question if can_be_asked(edit.request) else None
        if question is not None and model.has_chat_template:
            questions[edit.edit_id, "reply"] = question
    found: dict[str, dict[str, str]] = {edit.edit_id: {} for edit in edits}
    asks = [*_asks(model, asked.values(), SHOWN_TOKENS), *_asks(model, questions.values(), REPLY_TOKENS)]
    answers = yield [replace(ask, is_before=is_before) for ask in asks]
    for (edit_id, kind), tokens in zip([*asked, *questions], answers, strict=True):
        found[edit_id][kind] = model.decode(tokens).strip()
    return {edit_id: Said(**texts) for edit_id, texts in found.items()}


def with_answers(score: EditScore, edit: Edit, *, before: Said, after: Said, prob_before: float | None) -> EditScore:
    """Return what was measured of an edit, with what parent and candidate say to it."""
    return replace(
        score,
        generated_before=before.own,
        reply_before=before.reply,
        wording=None if after.wording is None else edit.request.unseen_rephrases(0)[0],
        wording_before=before.wording,
        wording_after=after.wording,
        prob_before=prob_before,
    )


def moved(model: EditableModel, probes: Sequence[Probed]) -> Talk[tuple[Moved, ...]]:
    """Ask a model the first `NUM_MOVED` of some probes that moved, and return what it says now.

    Args:
        model: the model as it is now.
        probes: in the order in which they are told.
    """
    shown = probes[:NUM_MOVED]
    says = yield _asks(model, (prompt for prompt, _, _ in shown), SHOWN_TOKENS)
    return tuple(
        Moved(
            prompt=_text_of(prompt),
            base=model.decode(answer.target_ids).strip(),
            now=model.decode(tokens).strip(),
            kl=kl,
        )
        for (prompt, answer, kl), tokens in zip(shown, says, strict=True)
    )


def _asks(model: EditableModel, prompts: Iterable[Prompt], most: int) -> list[Ask]:
    return [Ask(prompt_ids=model.encode_prompt(prompt), most=most) for prompt in prompts]


def _text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.question
