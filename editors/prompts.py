"""Knows how prompts and targets become token ids and padded batches. Knows no weight.

Legend: B sequences, L padded length, N target tokens in the batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.domain.errors import InvalidInput

OPENERS = tuple(" \n\t([{<\"'\u201c\u2018\u00ab\u00bf\u00a1")
"""What a prompt can end with so that its target follows without a blank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A prompt and its target as token ids; the target's tokens are what is scored."""

    prompt_ids: tuple[int, ...]
    """With the special tokens that the tokenizer puts in front; at least one token."""
    target_ids: tuple[int, ...]
    """At least one token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """What enters the first edited block for one batch; it never changes while only later blocks are edited."""

    hidden_BLH: Tensor
    """In the model's dtype, without gradient."""
    returns_tuple: bool
    """Whether the blocks of this architecture return a tuple."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetBatch:
    """Sequences padded on the right, and where their target tokens are predicted.

    No attention mask: under causal attention no real token sees the padding after it.
    """

    input_ids_BL: Tensor
    """Prompt, target without its last token, padding."""
    row_N: Tensor
    """Sequence of each target token; non-decreasing."""
    position_N: Tensor
    """Position whose logits predict it."""
    target_N: Tensor
    """Its id."""
    prefix: Prefix | None = None
    """Set by `CausalModel.prefixed`: only the blocks from the first edited one on are run."""

    @property
    def num_rows(self) -> int:
        """B."""
        return int(self.input_ids_BL.shape[0])


def encode_prompt(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Token ids of a prompt, with leading special tokens and without a closing one."""
    ids = list(tokenizer(prompt)["input_ids"])
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return tuple(ids) or (_start_id(tokenizer),)


def encode_pair(tokenizer: Any, prompt: str, target: str) -> Encoded:
    """Token ids of a prompt and of the target as it continues the prompt.

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
    return Encoded(prompt_ids=prompt_ids, target_ids=target_ids)


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
    return TargetBatch(
        input_ids_BL=torch.tensor(padded, device=device), row_N=row_N, position_N=position_N, target_N=target_N
    )


def chunks(sequences: Sequence[Encoded], *, max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences in groups of like length whose padded size stays within `max_tokens`."""
    lengths = [len(item.prompt_ids) + len(item.target_ids) - 1 for item in sequences]
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
