"""Free greedy answers to prompts, raw and in the chat template, and replies to questions in a chat.

Generation stops as soon as the answer is settled. A raw answer may have up to 24 tokens, but no more than its target
plus 8: by then `answers.confirms` cannot change its mind. An answer that already went another way is followed for a
few tokens more, for the reader of the report. A reply to a question may say its answer anywhere, so it is never cut
short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from editors.models.families import EditableModel, Pair
from pipeline.domain.language.answers import confirms, is_settled
from pipeline.domain.prompts import ChatPrompt, asked_in_chat

MAX_TOKENS = 24
"""Most tokens of a free answer."""
REPLY_TOKENS = 32
"""Most tokens of a reply to a question."""
MARGIN_TOKENS = 8
"""Tokens after the target's length in which it must show whether the answer runs on."""
READABLE_TOKENS = 6
"""Tokens of a raw answer that are always shown."""
AT_ONCE = 64
"""Most prompts that a CPU continues together, which bounds the memory of their keys and values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeAnswer:
    """What a model says freely after one prompt."""

    text: str
    """The raw answer, without the prompt."""
    is_success: bool
    """Whether the raw answer confirms the target."""
    is_success_in_chat: bool | None = None
    """Whether the answer in the chat template does; None where it was not asked, or there is no template."""


def free_answers(
    model: EditableModel,
    pairs: Sequence[Pair],
    *,
    in_chat: Sequence[bool] | None = None,
    replies: Mapping[ChatPrompt, str] | None = None,
    instead_of: Mapping[Pair, str | None] | None = None,
) -> list[FreeAnswer]:
    """Return the answer to each prompt, in order; every rank has to call it.

    Args:
        model: the model as it is now.
        pairs: prompts, and the targets that would be right; a prompt that is a chat is only asked as it is.
        in_chat: for each pair, whether it is asked in the chat template too; all are if None.
        replies: what the model is known to reply in a chat; none of it is asked again.
        instead_of: the old answer that each target takes the place of, where one is known.
    """
    old = [(instead_of or {}).get(pair) for pair in pairs]
    raw = _said(model, pairs, is_chat=False)
    wanted = {place for place in range(len(pairs)) if model.has_chat_template and (in_chat is None or in_chat[place])}
    said = {place: text for place in wanted if (text := _known(pairs[place], raw[place], replies or {})) is not None}
    asked = sorted(wanted - said.keys())
    said |= zip(asked, _said(model, [pairs[place] for place in asked], is_chat=True), strict=True)
    return [
        FreeAnswer(
            text=text,
            is_success=confirms(text, target, instead_of=old[place]),
            is_success_in_chat=confirms(said[place], target, instead_of=old[place]) if place in said else None,
        )
        for place, (text, (_, target)) in enumerate(zip(raw, pairs, strict=True))
    ]


def chat_replies(model: EditableModel, questions: Sequence[ChatPrompt]) -> list[str]:
    """Return what a model replies to each question in its chat template; every rank has to call it."""
    most = AT_ONCE * model.times_more
    parts = (questions[start : start + most] for start in range(0, len(questions), most))
    prompts = ([model.encode_prompt(question) for question in part] for part in parts)
    answers = (tokens for part in prompts for tokens in model.greedy(part, max_new_tokens=REPLY_TOKENS))
    return [model.decode(tokens).strip() for tokens in answers]


def _known(pair: Pair, raw: str, replies: Mapping[ChatPrompt, str]) -> str | None:
    """Return what a prompt gets in the chat template, where that has been asked already."""
    prompt, _ = pair
    return replies.get(asked_in_chat(prompt)) if isinstance(prompt, str) else raw


def _said(model: EditableModel, pairs: Sequence[Pair], *, is_chat: bool) -> list[str]:
    most = AT_ONCE * model.times_more
    starts = range(0, len(pairs), most)
    return [text for start in starts for text in _said_at_once(model, pairs[start : start + most], is_chat=is_chat)]


def _said_at_once(model: EditableModel, pairs: Sequence[Pair], *, is_chat: bool) -> list[str]:
    longest = max(len(model.encode_pair(prompt, target).target_ids) for prompt, target in pairs)

    def is_done(place: int, tokens: Sequence[int]) -> bool:
        text, target = model.decode(tokens), pairs[place][1]
        return is_settled(text, target) and (is_chat or len(tokens) >= READABLE_TOKENS or confirms(text, target))

    answers = model.greedy(
        [
            model.encode_prompt(asked_in_chat(prompt) if is_chat and isinstance(prompt, str) else prompt)
            for prompt, _ in pairs
        ],
        max_new_tokens=min(MAX_TOKENS, longest + MARGIN_TOKENS),
        is_done=is_done,
    )
    return [model.decode(tokens).strip() for tokens in answers]
