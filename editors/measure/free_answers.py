"""Free greedy answers to prompts, raw and in the chat template, and replies to questions in a chat.

Generation stops as soon as the answer is settled. A raw answer may have up to 24 tokens, but no more than its target
plus 8: by then `answers.confirms` cannot change its mind. An answer that already went another way is followed for a
few tokens more, for the reader of the report. A reply to a question may say its answer anywhere, so it is never cut
short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from editors.measure.rounds import Ask, Talk
from editors.models.families import EditableModel, Pair
from pipeline.domain.language.answers import confirms, is_settled
from pipeline.domain.prompts import ChatPrompt, Prompt, asked_in_chat

MAX_TOKENS = 24
"""Most tokens of a free answer."""
REPLY_TOKENS = 32
"""Most tokens of a reply to a question."""
MARGIN_TOKENS = 8
"""Tokens after the target's length in which it must show whether the answer runs on."""
READABLE_TOKENS = 6
"""Tokens of a raw answer that are always shown."""


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
    questions: Sequence[ChatPrompt] = (),
    instead_of: Mapping[Pair, str | None] | None = None,
) -> Talk[tuple[list[FreeAnswer], dict[ChatPrompt, str]]]:
    """Ask prompts freely, and return the answer to each in order, and the replies to questions in a chat.

    Args:
        model: the model as it is now.
        pairs: prompts, and the targets that would be right; a prompt that is a chat is only asked as it is.
        in_chat: for each pair, whether it is asked in the chat template too; all are if None.
        questions: what is asked in the chat template for a reply, each once; nothing that is asked here is asked again.
        instead_of: the old answer that each target takes the place of, where one is known.
    """
    old = [(instead_of or {}).get(pair) for pair in pairs]
    asked = {question: Ask(prompt_ids=model.encode_prompt(question), most=REPLY_TOKENS) for question in questions}
    wanted = {place for place in range(len(pairs)) if model.has_chat_template and (in_chat is None or in_chat[place])}
    turns = {place: asked_in_chat(prompt) for place in wanted if isinstance(prompt := pairs[place][0], str)}
    alone = {place: chat for place, chat in turns.items() if chat not in asked}
    answers = yield [
        *asked.values(),
        *(_ask(model, prompt, target, is_chat=False) for prompt, target in pairs),
        *(_ask(model, chat, pairs[place][1], is_chat=True) for place, chat in alone.items()),
    ]
    said = [model.decode(tokens).strip() for tokens in answers]
    replies = dict(zip(asked, said, strict=False))
    raw = said[len(asked) : len(asked) + len(pairs)]
    # A prompt that is a chat has been answered in the template already.
    in_template = {place: raw[place] for place in wanted - turns.keys()}
    in_template |= {place: replies[chat] for place, chat in turns.items() if chat in asked}
    in_template |= zip(alone, said[len(asked) + len(pairs) :], strict=True)
    return [
        FreeAnswer(
            text=text,
            is_success=confirms(text, target, instead_of=old[place]),
            is_success_in_chat=confirms(in_template[place], target, instead_of=old[place])
            if place in in_template
            else None,
        )
        for place, (text, (_, target)) in enumerate(zip(raw, pairs, strict=True))
    ], replies


def _ask(model: EditableModel, prompt: Prompt, target: str, *, is_chat: bool) -> Ask:
    def is_done(tokens: Sequence[int]) -> bool:
        text = model.decode(tokens)
        return is_settled(text, target) and (is_chat or len(tokens) >= READABLE_TOKENS or confirms(text, target))

    length = len(model.encode_pair(prompt, target).target_ids)
    return Ask(prompt_ids=model.encode_prompt(prompt), most=min(MAX_TOKENS, length + MARGIN_TOKENS), is_done=is_done)
