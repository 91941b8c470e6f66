"""Prompts and targets as token ids and as padded batches.

The target tokens of a batch are N numbered places: `row_N` says in which sequence, `position_N` at which position they
are predicted, and `target_N` which token is right there. Nothing is scored but these.

Legend: B sequences, L padded length, N target tokens in the batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor

from editors.models.left_context import Left
from editors.models.text_tokens import (
    continuing,
    own_tokens,
    require_known,
    require_plain,
    require_same,
    subject_end,
    tokens_of,
)
from pipeline.domain.errors import InvalidInput
from pipeline.domain.language.joining import joined
from pipeline.domain.prompts import ChatPrompt, Prompt

KeyTokens = Literal["answer", "subject"]
"""Which tokens of an edit are its rows: those that predict the target's tokens, or the subject's last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A prompt and its target as token ids; only the target's tokens are scored."""

    prompt_ids: tuple[int, ...]
    """Token ids of the prompt, with the special tokens in front of it; at least one."""
    target_ids: tuple[int, ...]
    """Token ids of the target; at least one."""
    subject_end: int | None = None
    """Place of the subject's last token in `prompt_ids`; None when no subject is known or it is not in the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """The hidden states that enter a block in one batch; no edit of this block or a later one changes them."""

    hidden_BLH: Tensor
    """The hidden states, in the model's dtype and without gradient."""
    returns_tuple: bool
    """Whether this architecture's blocks return a tuple rather than a tensor."""
    block: int
    """Number of the block that they enter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetBatch:
    """Sequences padded on the right, and where their target tokens are predicted.

    A decoder needs no attention mask: under causal attention no real token sees the padding after it.
    """

    input_ids_BL: Tensor
    """Prompt, target without its last token, and padding; for an encoder prompt and padding."""
    row_N: Tensor
    """Sequence of each target token; does not decrease."""
    position_N: Tensor
    """Position whose logits predict each target token."""
    target_N: Tensor
    """Token id of each target token."""
    subject_B: Tensor
    """Position of each sequence's last subject token; -1 where there is none."""
    prefix: Prefix | None = None
    """What enters the first edited block, if `CausalModel.prefixed` has put it here; then only later blocks run."""
    mask_BL: Tensor | None = None
    """For an encoder: 1 where `input_ids_BL` is no padding."""
    decoder_ids_BM: Tensor | None = None
    """For an encoder with a decoder: what the decoder is given; `position_N` counts along it."""
    left: Left | None = None
    """For a decoder: the beginnings of the sequences, if they were read before; positions count from where they end."""

    @property
    def num_rows(self) -> int:
        """How many sequences there are, B."""
        return int(self.input_ids_BL.shape[0])

    def keys(self, kind: KeyTokens) -> tuple[Tensor, Tensor]:
        """Return rows and positions, T each, of the tokens that are edit rows; rows do not decrease."""
        if kind == "answer":
            return self.row_N, self.position_N
        row_T = (self.subject_B >= 0).nonzero()[:, 0]
        return row_T, self.subject_B[row_T]


def rendered(tokenizer: Any, prompt: Prompt) -> str:
    """Return a prompt as the text that a model reads: a chat in its template, with the beginning of the answer.

    A tokenizer without a template gets the last turn's text and the beginning of the answer.

    Raises:
        InvalidInput: if the template does not take these turns.
    """
    if isinstance(prompt, str):
        return prompt
    if not _is_templated(tokenizer, prompt):
        return joined(prompt.question, prompt.begun)
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise InvalidInput(f"expected turns that the chat template takes, got others: {error}") from error
    return f"{text}{prompt.begun}"


def encode_prompt(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """Return the token ids of a prompt, with the special tokens in front and without those that close it.

    Raises:
        InvalidInput: if the chat template does not take the prompt's turns, or the prompt is not a text that the
            tokenizer knows; see `require_readable`.
    """
    require_readable(tokenizer, prompt)
    return raw_tokens(tokenizer, prompt)


def raw_tokens(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """Return what `encode_prompt` does for any text, also one with control tokens that somebody put there."""
    return _ids(tokenizer, rendered(tokenizer, prompt), is_templated=_is_templated(tokenizer, prompt))


def require_readable(tokenizer: Any, prompt: Prompt) -> None:
    """Refuse a prompt that holds a token of the tokenizer's own, or of which it knows no word.

    Raises:
        InvalidInput: naming the token, or with the prompt.
    """
    if isinstance(prompt, str):
        require_plain(tokenizer, prompt)
        require_known(tokenizer, prompt)
        return
    for text in (*(turn.content for turn in prompt.turns), prompt.begun):
        require_plain(tokenizer, text)
    require_known(tokenizer, joined(prompt.question, prompt.begun))


def encode_pair(tokenizer: Any, prompt: Prompt, target: str, subject: str | None = None) -> Encoded:
    """Encode a prompt, the target as it continues the prompt, and the place where the subject ends.

    Raises:
        InvalidInput: if the target has no token or does not come back from its tokens, if one of the tokenizer's own
            tokens is in either text, or the chat template does not take the prompt's turns.
    """
    require_readable(tokenizer, prompt)
    require_plain(tokenizer, target)
    text, is_templated = rendered(tokenizer, prompt), _is_templated(tokenizer, prompt)
    prompt_ids = _ids(tokenizer, text, is_templated=is_templated)
    whole = joined(text, target)
    if not is_templated:
        require_plain(tokenizer, whole)  # the end of the one and the beginning of the other may make a token
    whole_ids = _ids(tokenizer, whole, is_templated=is_templated)
    target_ids = continuing(tokenizer, prompt_ids, whole_ids, whole[len(text) :])
    if not target_ids:
        raise InvalidInput(f"expected a target of at least one token, got {target!r:.80}")
    require_same(tokenizer, target, target_ids, prompt_ids)
    end = subject_end(tokenizer, text, subject, is_templated=is_templated)
    return Encoded(prompt_ids=prompt_ids, target_ids=target_ids, subject_end=end)


def encode_named(tokenizer: Any, text: str, subject: str) -> Encoded:
    """Encode a text of which only the key of a subject is read; the target is made up and never used."""
    ids = _ids(tokenizer, text, is_templated=False)
    return Encoded(prompt_ids=ids, target_ids=ids[-1:], subject_end=subject_end(tokenizer, text, subject))


def pack(sequences: Sequence[Encoded], *, device: torch.device) -> TargetBatch:
    """Put sequences into one batch in the order given, each padded on the right with its own last token."""
    rows = [(*item.prompt_ids, *item.target_ids[:-1]) for item in sequences]
    width = max(map(len, rows))
    padded = [(*row, *row[-1:] * (width - len(row))) for row in rows]
    places = [
        (row, len(item.prompt_ids) - 1 + offset, token)
        for row, item in enumerate(sequences)
        for offset, token in enumerate(item.target_ids)
    ]
    row_N, position_N, target_N = torch.tensor(places, device=device).unbind(dim=1)
    return TargetBatch(
        input_ids_BL=torch.tensor(padded, device=device),
        row_N=row_N,
        position_N=position_N,
        target_N=target_N,
        subject_B=subject_ends(sequences, device),
    )


def cut(sequence: Encoded, start: int) -> Encoded:
    """Return what a sequence has from a place of its prompt on; the subject, if it has one, ends there or later."""
    end = sequence.subject_end
    rest = sequence.prompt_ids[start:]
    return replace(sequence, prompt_ids=rest, subject_end=None if end is None else end - start)


def subject_ends(sequences: Sequence[Encoded], device: torch.device) -> Tensor:
    """Return the position of each prompt's last subject token, B; -1 where there is none."""
    return torch.tensor([-1 if item.subject_end is None else item.subject_end for item in sequences], device=device)


def num_tokens(sequence: Encoded) -> int:
    """Return how many tokens of a sequence a decoder reads: all but the target's last, which nothing follows."""
    return len(sequence.prompt_ids) + len(sequence.target_ids) - 1


def chunks(sequences: Sequence[Encoded], *, max_tokens: int, change: int | None = None) -> Iterator[list[int]]:
    """Yield the places of sequences in groups of like length, whose padded size is at most `max_tokens`.

    No group has sequences on both sides of a `change` of rotation, in tokens.
    """
    lengths = [num_tokens(item) for item in sequences]
    group: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda place: (lengths[place], place)):
        is_changed = bool(group) and change is not None and lengths[group[-1]] <= change < lengths[index]
        if group and (is_changed or (len(group) + 1) * lengths[index] > max_tokens):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def pad_id(tokenizer: Any) -> int:
    """Return a token id for padding: the tokenizer's own, or any that exists."""
    return next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _is_templated(tokenizer: Any, prompt: Prompt) -> bool:
    return isinstance(prompt, ChatPrompt) and bool(getattr(tokenizer, "chat_template", None))


def _ids(tokenizer: Any, text: str, *, is_templated: bool) -> tuple[int, ...]:
    """Return token ids of a text; a template has written the special tokens into it already."""
    if is_templated:
        return own_tokens(tokenizer, text)
    found = tokens_of(tokenizer, text)
    return (*found.before, *found.own) or (_start_id(tokenizer),)


def _start_id(tokenizer: Any) -> int:
    return next((int(i) for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
