"""Greedy decoding of a batch, in which each answer stops as early as it may.

This is a loop of our own rather than transformers' `generate`, for four reasons: an answer can be finished by what it
says; a finished answer leaves the batch; a beginning that all prompts share (the system turn of a chat template) runs
once; and a checkpoint's generation settings (beams, least lengths, forced tokens) have no influence. Each rank answers
a share of the prompts, and runs along until the last rank is done.

Legend: B sequences that are still answered, L padded length, S tokens that all prompts begin with, H heads, D size of a
head, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editors.models.comm import Comm, merged, own_share

Prompts = Sequence[Sequence[int]]
"""The token ids of some prompts."""
IsDone = Callable[[int, Sequence[int]], bool]
"""(place of the prompt, token ids generated so far) -> whether the answer needs no more tokens."""


def never_done(_place: int, _tokens: Sequence[int]) -> bool:
    """Let no answer end before its stop token."""
    return False


class Decoding(Protocol):
    """A batch of answers in the making, with the cache that is kept between two tokens."""

    def begin(self) -> Tensor:
        """Run the prompts and return the logits after each, B x V."""
        ...

    def advance(self, tokens_B: Tensor, rows_B: Tensor | None) -> Tensor:
        """Run one more token of each sequence and return the logits after it, B x V.

        Args:
            tokens_B: the id of each sequence's next token.
            rows_B: the rows of the batch so far that stay in it; None for all.
        """
        ...


@torch.no_grad()
def greedy(
    decode: Callable[[Prompts], Decoding],
    prompts: Prompts,
    *,
    comm: Comm,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    is_done: IsDone = never_done,
) -> list[list[int]]:
    """Return the greedy answer to each prompt as token ids, without the stop token; every rank has to call it.

    Args:
        decode: begins the answers to some of the prompts.
        prompts: each of at least one token.
        comm: the ranks that hold the model together.
        max_new_tokens: most tokens of an answer.
        stop_ids: tokens that end an answer.
        is_done: asked after each token; where it is true, the answer ends with that token.
    """
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    live = own_share(comm, range(len(prompts)))
    answers: dict[int, list[int]] = {place: [] for place in live}
    decoding = decode([prompts[place] for place in live or [0]])
    logits_BV = decoding.begin()
    while True:
        tokens = logits_BV.argmax(dim=-1).tolist()
        staying = []
        for row, place in enumerate(live):
            if tokens[row] in stop_ids:
                continue
            answers[place].append(tokens[row])
            if len(answers[place]) < max_new_tokens and not is_done(place, answers[place]):
                staying.append(row)
        if not any(comm.gathered(bool(staying))):
            return merged(comm, answers)
        # A rank whose answers are done still runs a row, because the others gather its part of the weights.
        rows = staying or [0]
        rows_B = torch.tensor(rows, device=logits_BV.device) if len(rows) < len(tokens) else None
        live, tokens = [live[row] for row in staying], [tokens[row] for row in rows]
        logits_BV = decoding.advance(torch.tensor(tokens, device=logits_BV.device), rows_B)


class CausalDecoding:
    """Continuations by a decoder-only model with a KV cache.

    Args:
        module: the model.
        prompts: each of at least one token.
        shared: how many tokens that all prompts begin with are run once; see `shared_length`.
        pad_id: any token id; padding is masked.
    """

    def __init__(self, module: nn.Module, prompts: Prompts, *, shared: int, pad_id: int) -> None:
        self._module, self._prompts, self._shared, self._pad_id = module, prompts, shared, pad_id
        self._cache: Any = None
        self._mask_BL = torch.empty(0, dtype=torch.long)
        # Models with ALiBi have none.
        self._has_positions = "position_ids" in inspect.signature(module.forward).parameters

    def begin(self) -> Tensor:
        """Run the shared beginning once, then the rest of each prompt, padded on the left; logits, B x V.

        No padding is ever between two tokens: windows and slopes of attention count columns. So a shorter prompt takes
        less of what is shared and runs as many tokens of its own as the longest.
        """
        device = next(self._module.parameters()).device
        shared, width = self._shared, max(map(len, self._prompts)) - self._shared
        taken = [max(min(len(prompt) - width, shared), 0) for prompt in self._prompts]
        if shared:
            self._cache = DynamicCache()  # keeps all tokens, also for layers with a window
            self._mask_BL = torch.ones(1, shared, dtype=torch.long, device=device)
            self._run(torch.tensor([list(self._prompts[0][:shared])], device=device))
            for layer in self._cache.layers:
                layer.keys, layer.values = (_beginnings(kept, taken) for kept in (layer.keys, layer.values))
        # Padding is on the left, so that every prompt ends, and every answer grows, in the same column.
        rests = [list(prompt[num:]) for prompt, num in zip(self._prompts, taken, strict=True)]
        lengths = [len(prompt) for prompt in self._prompts]
        self._mask_BL = torch.tensor([[0] * (shared + width - num) + [1] * num for num in lengths], device=device)
        padded = [[self._pad_id] * (width - len(rest)) + rest for rest in rests]
        return self._run(torch.tensor(padded, device=device))

    def advance(self, tokens_B: Tensor, rows_B: Tensor | None) -> Tensor:
        """Run one more token of the rows that stay; logits, B x V."""
        if rows_B is not None:
            self._cache.batch_select_indices(rows_B)
            self._mask_BL = self._mask_BL[rows_B]
        self._mask_BL = torch.cat([self._mask_BL, self._mask_BL.new_ones(len(tokens_B), 1)], dim=1)
        return self._run(tokens_B[:, None])

    def _run(self, input_ids_BL: Tensor) -> Tensor:
        # Positions count real tokens: padding before a prompt must not move it.
        position_BL = (self._mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids_BL.shape[1] :]
        positions = {"position_ids": position_BL} if self._has_positions else {}
        output = self._module(
            input_ids=input_ids_BL,
            attention_mask=self._mask_BL,
            **positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


def _beginnings(kept_1HSD: Tensor, taken: Sequence[int]) -> Tensor:
    """Return the first tokens of what is kept for attention, for each row as many as it takes, at the right end.

    What is left of them is padding, and masked.
    """
    num_shared = kept_1HSD.shape[2]
    first_B1 = torch.tensor([[num_shared - num] for num in taken], device=kept_1HSD.device)
    place_BS = (torch.arange(num_shared, device=kept_1HSD.device)[None, :] - first_B1).clamp(min=0)
    return kept_1HSD[0][:, place_BS].transpose(0, 1).contiguous()


def shared_length(prompts: Prompts) -> int:
    """Return how many tokens all prompts begin with; 0 where they are too few to be worth a forward of their own."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1
    same = next((i for i in range(shortest) if len({prompt[i] for prompt in prompts}) > 1), shortest)
    return same if same >= 8 else 0
