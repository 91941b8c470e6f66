"""Knows how edits are asked freely: greedy, raw and in the chat template, stopped as soon as the answer is settled.

A raw answer may have up to 24 tokens, but no more than its target plus 8: by then `answers.confirms` cannot change its
mind. An answer that already went another way is followed for a few tokens more, for whoever reads the report.
"""

from __future__ import annotations

from collections.abc import Sequence

from editors.measure.answers import confirms, is_settled
from editors.models.families import EditableModel
from pipeline.domain.edits import Edit

MAX_TOKENS = 24
"""Most tokens of a free answer."""
MARGIN_TOKENS = 8
"""Tokens after the target's length in which it must show whether the answer runs on."""
READABLE_TOKENS = 6
"""Tokens of a raw answer that are always shown."""


def free_answers(
    model: EditableModel, edits: Sequence[Edit], *, num_chat: int | None = None
) -> list[tuple[str, bool, bool | None]]:
    """For each edit: what raw generation said, whether that confirms it, and whether the answer in a chat does.

    Args:
        model: as it is now.
        edits: what to ask.
        num_chat: how many edits, from the first, are asked in the chat template; all if None.
    """
    raw = _said(model, edits, is_chat=False)
    asked = edits[:num_chat] if model.has_chat_template else []
    chat = _said(model, asked, is_chat=True) if asked else []
    verdicts = [confirms(text, edit.request.target_new) for text, edit in zip(chat, asked, strict=True)]
    in_chat = [*verdicts, *[None] * (len(edits) - len(verdicts))]
    return [
        (text, confirms(text, edit.request.target_new), is_chat)
        for text, edit, is_chat in zip(raw, edits, in_chat, strict=True)
    ]


def _said(model: EditableModel, edits: Sequence[Edit], *, is_chat: bool) -> list[str]:
    targets = [edit.request.target_new for edit in edits]
    encode = model.encode_chat if is_chat else model.encode_prompt
    longest = max(len(model.encode_pair(edit.request.prompt, edit.request.target_new).target_ids) for edit in edits)

    def is_done(place: int, tokens: Sequence[int]) -> bool:
        text = model.decode(tokens)
        return is_settled(text, targets[place]) and (
            is_chat or len(tokens) >= READABLE_TOKENS or confirms(text, targets[place])
        )

    answers = model.greedy(
        [encode(edit.request.prompt) for edit in edits],
        max_new_tokens=min(MAX_TOKENS, longest + MARGIN_TOKENS),
        is_done=is_done,
    )
    return [model.decode(tokens).strip() for tokens in answers]
