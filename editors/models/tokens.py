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

from pipeline.domain.errors import InvalidInput
from pipeline.domain.prompts import ChatPrompt, Prompt, asked_in_chat

KeyTokens = Literal["answer", "subject"]
"""Which tokens of an edit are its rows: those that predict the target's tokens, or the subject's last one."""

OPENERS = tuple(" \n\t([{<\"'\u201c\u2018\u00ab\u00bf\u00a1")
"""What a prompt can end with so that its target follows without a space."""


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

    @property
    def num_rows(self) -> int:
        """How many sequences there are, B."""
        return int(self.input_ids_BL.shape[0])

    def of_rows(self, rows: Sequence[int]) -> TargetBatch:
        """Return some of the sequences, in the order given, padded as they are here."""
        if list(rows) == list(range(self.num_rows)):
            return self
        row_R = torch.tensor(list(rows), dtype=torch.long, device=self.row_N.device)
        place_B = self.row_N.new_full((self.num_rows,), -1)
        place_B[row_R] = torch.arange(len(rows), device=row_R.device)
        place_N = place_B[self.row_N]
        order_N = (place_N >= 0).nonzero()[:, 0]
        order_N = order_N[place_N[order_N].argsort(stable=True)]
        prefix = self.prefix
        return TargetBatch(
            input_ids_BL=self.input_ids_BL[row_R],
            row_N=place_N[order_N],
            position_N=self.position_N[order_N],
            target_N=self.target_N[order_N],
            subject_B=self.subject_B[row_R],
            prefix=None if prefix is None else replace(prefix, hidden_BLH=prefix.hidden_BLH[row_R]),
            mask_BL=None if self.mask_BL is None else self.mask_BL[row_R],
            decoder_ids_BM=None if self.decoder_ids_BM is None else self.decoder_ids_BM[row_R],
        )

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
        return f"{prompt.question} {prompt.begun}".rstrip()
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise InvalidInput(f"expected turns that the chat template takes, got others: {error}") from error
    return f"{text}{prompt.begun}"


def encode_prompt(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """Return the token ids of a prompt, with the special tokens in front and without one that closes it."""
    return _ids(tokenizer, rendered(tokenizer, prompt), is_templated=_is_templated(tokenizer, prompt))


def encode_pair(tokenizer: Any, prompt: Prompt, target: str, subject: str | None = None) -> Encoded:
    """Encode a prompt, the target as it continues the prompt, and the place where the subject ends.

    Raises:
        InvalidInput: if the target has no token, or the chat template does not take the prompt's turns.
    """
    text, is_templated = rendered(tokenizer, prompt), _is_templated(tokenizer, prompt)
    prompt_ids = _ids(tokenizer, text, is_templated=is_templated)
    # Tokens depend on what is around them ("Lima" is another token than " Lima"): encode the whole, then cut it.
    joined = text + target if not text or text.endswith(OPENERS) else f"{text} {target}"
    whole_ids = _ids(tokenizer, joined, is_templated=is_templated)
    target_ids = whole_ids[len(prompt_ids) :]
    if whole_ids[: len(prompt_ids)] != prompt_ids:  # a token spans the seam: encode the target by itself
        target_ids = tuple(tokenizer(joined[len(text) :], add_special_tokens=False)["input_ids"])
    if not target_ids:
        raise InvalidInput(f"expected a target of at least one token, got {target!r:.80}")
    end = subject_end(tokenizer, text, subject, is_templated=is_templated)
    return Encoded(prompt_ids=prompt_ids, target_ids=target_ids, subject_end=end)


def subject_end(tokenizer: Any, text: str, subject: str | None, *, is_templated: bool = False) -> int | None:
    """Return the place of the token that ends the subject's last occurrence in a text; None if it has none."""
    start = text.rfind(subject) if subject else -1
    if start < 0 or not subject:
        return None
    spans = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not is_templated)["offset_mapping"]
    end = start + len(subject)
    return max(place for place, (first, last) in enumerate(spans) if first < end and last > first)


def require_plain(tokenizer: Any, text: str) -> None:
    """Refuse a text with a token of the tokenizer's own in it, such as the one that ends a turn.

    A tokenizer reads it as that token wherever it stands: the text of one turn would become several, and speak as
    somebody else.

    Raises:
        InvalidInput: naming the token.
    """
    added = tokenizer.added_tokens_decoder.values()
    for token in {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}:
        if token and token in text:
            raise InvalidInput(
                f"expected turns of plain text, got one with the tokenizer's own token {token!r:.40} in it"
            )


def encode_chat(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Return the token ids of a prompt as a user's turn in the chat template, up to where the answer begins."""
    return encode_prompt(tokenizer, asked_in_chat(prompt))


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


def subject_ends(sequences: Sequence[Encoded], device: torch.device) -> Tensor:
    """Return the position of each prompt's last subject token, B; -1 where there is none."""
    return torch.tensor([-1 if item.subject_end is None else item.subject_end for item in sequences], device=device)


def num_tokens(sequence: Encoded) -> int:
    """Return how many tokens of a sequence a decoder reads: all but the target's last, which nothing follows."""
    return len(sequence.prompt_ids) + len(sequence.target_ids) - 1


def chunks(sequences: Sequence[Encoded], *, max_tokens: int) -> Iterator[list[int]]:
    """Yield the places of sequences in groups of like length, whose padded size is at most `max_tokens`."""
    lengths = [num_tokens(item) for item in sequences]
    group: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda place: (lengths[place], place)):
        if group and (len(group) + 1) * lengths[index] > max_tokens:
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
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(text)["input_ids"])
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return tuple(ids) or (_start_id(tokenizer),)


def _start_id(tokenizer: Any) -> int:
    return next((int(i) for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
