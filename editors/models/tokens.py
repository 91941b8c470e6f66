"""Knows how prompts and targets become token ids and padded batches. Knows no weight.

Legend: B sequences, L padded length, N target tokens in the batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.domain.errors import InvalidInput

KeyTokens = Literal["answer", "subject"]
"""Which tokens of an edit are its rows: those that predict the target's, or the last one of the subject."""

OPENERS = tuple(" \n\t([{<\"'\u201c\u2018\u00ab\u00bf\u00a1")
"""What a prompt can end with so that its target follows without a blank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A prompt and its target as token ids; the target's tokens are what is scored."""

    prompt_ids: tuple[int, ...]
    """With the special tokens that the tokenizer puts in front; at least one token."""
    target_ids: tuple[int, ...]
    """At least one token."""
    subject_end: int | None = None
    """Place of the subject's last token in `prompt_ids`; None when no subject is known or it is not in the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """What enters a block for one batch; it never changes while only this block and later ones are edited."""

    hidden_BLH: Tensor
    """In the model's dtype, without gradient."""
    returns_tuple: bool
    """Whether the blocks of this architecture return a tuple."""
    block: int
    """The block it enters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetBatch:
    """Sequences padded on the right, and where their target tokens are predicted.

    No attention mask in a decoder: under causal attention no real token sees the padding after it.
    """

    input_ids_BL: Tensor
    """Prompt, target without its last token, padding; in an encoder the prompt and padding."""
    row_N: Tensor
    """Sequence of each target token; non-decreasing."""
    position_N: Tensor
    """Position whose logits predict it."""
    target_N: Tensor
    """Its id."""
    subject_B: Tensor
    """Position of each sequence's last subject token; -1 where there is none."""
    prefix: Prefix | None = None
    """Set by `CausalModel.prefixed`: only the blocks from the first edited one on are run."""
    mask_BL: Tensor | None = None
    """In an encoder: 1 where `input_ids_BL` is no padding."""
    decoder_ids_BM: Tensor | None = None
    """In an encoder and decoder: what the decoder is given; `position_N` counts here."""

    @property
    def num_rows(self) -> int:
        """B."""
        return int(self.input_ids_BL.shape[0])

    def keys(self, kind: KeyTokens) -> tuple[Tensor, Tensor]:
        """Rows and positions, T each, of the tokens that are edit rows; rows are non-decreasing."""
        if kind == "answer":
            return self.row_N, self.position_N
        row_T = (self.subject_B >= 0).nonzero()[:, 0]
        return row_T, self.subject_B[row_T]


def encode_prompt(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Token ids of a prompt, with leading special tokens and without a closing one."""
    ids = list(tokenizer(prompt)["input_ids"])
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return tuple(ids) or (_start_id(tokenizer),)


def encode_pair(tokenizer: Any, prompt: str, target: str, subject: str | None = None) -> Encoded:
    """Token ids of a prompt and of the target as it continues the prompt, and where the subject ends in it.

    Raises:
        InvalidInput: if the target has no token.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    joined = prompt + target if not prompt or prompt.endswith(OPENERS) else f"{prompt} {target}"
    whole_ids = encode_prompt(tokenizer, joined)
    target_ids = whole_ids[len(prompt_ids) :]
    if whole_ids[: len(prompt_ids)] != prompt_ids:  # a token spans the seam: encode the target by itself
        target_ids = tuple(tokenizer(joined[len(prompt) :], add_special_tokens=False)["input_ids"])
    if not target_ids:
        raise InvalidInput(f"expected a target of at least one token, got {target!r:.80}")
    return Encoded(prompt_ids=prompt_ids, target_ids=target_ids, subject_end=subject_end(tokenizer, prompt, subject))


def subject_end(tokenizer: Any, prompt: str, subject: str | None) -> int | None:
    """Place of the token that ends the subject's last occurrence in a prompt, if it occurs."""
    start = prompt.rfind(subject) if subject else -1
    if start < 0 or not subject:
        return None
    spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    end = start + len(subject)
    return max(place for place, (first, last) in enumerate(spans) if first < end and last > first)


def encode_chat(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Token ids of a prompt as a user's turn in the model's chat template, up to where the answer begins."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def pack(sequences: Sequence[Encoded], *, device: torch.device) -> TargetBatch:
    """Pad sequences on the right, each with its own last token, into one batch in the order given."""
    rows = [(*item.prompt_ids, *item.target_ids[:-1]) for item in sequences]
    width = max(map(len, rows))
    padded = [(*row, *row[-1:] * (width - len(row))) for row in rows]
    places = [
        (row, len(item.prompt_ids) - 1 + offset, token)
        for row, item in enumerate(sequences)
        for offset, token in enumerate(item.target_ids)
    ]
    row_N, position_N, target_N = torch.tensor(places, device=device).unbind(dim=1)
    ends = [-1 if item.subject_end is None else item.subject_end for item in sequences]
    return TargetBatch(
        input_ids_BL=torch.tensor(padded, device=device),
        row_N=row_N,
        position_N=position_N,
        target_N=target_N,
        subject_B=torch.tensor(ends, device=device),
    )


def num_tokens(sequence: Encoded) -> int:
    """How many tokens of a sequence a decoder reads: all but the target's last."""
    return len(sequence.prompt_ids) + len(sequence.target_ids) - 1


def chunks(sequences: Sequence[Encoded], *, max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences in groups of like length whose padded size stays within `max_tokens`."""
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
    """Any id that may stand where nothing looks."""
    return next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _start_id(tokenizer: Any) -> int:
    return next((int(i) for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
