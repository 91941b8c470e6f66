"""Knows greedy decoding of a batch, stopping each answer as early as allowed. Knows no edit.

Our own loop rather than `generate`: an answer can be finished by what it says, what is finished leaves the batch, a
beginning that all prompts share (the system turn of a chat template) is run once, and no checkpoint's generation
settings (beams, least lengths, forced tokens) creep in. Ranks answer a share of the prompts each, and go on until the
last of them is done.

Legend: B sequences that are still answered, L padded length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from editors.models.comm import Comm, merged, own_share

Prompts = Sequence[Sequence[int]]
"""Token ids of some prompts."""
IsDone = Callable[[int, Sequence[int]], bool]
"""(place of the prompt, tokens generated so far) -> whether its answer needs no more tokens."""


class Decoding(Protocol):
    """Answers to a batch of prompts in the making, with whatever is kept between two tokens."""

    def begin(self) -> Tensor:
        """Logits after each prompt, B x V."""
        ...

    def advance(self, tokens_B: Tensor, rows_B: Tensor | None) -> Tensor:
        """Logits after one more token of each sequence, B x V.

        Args:
            tokens_B: the tokens.
            rows_B: the rows of the batch so far that stay in it; all if None.
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
    is_done: IsDone = lambda _place, _tokens: False,
) -> list[list[int]]:
    """The most probable answer to each prompt, without the stop token.

    Args:
        decode: makes answers to some of the prompts.
        prompts: each of at least one token.
        comm: the ranks that hold the model together.
        max_new_tokens: most tokens of an answer.
        stop_ids: tokens that end an answer.
        is_done: asked after each token; true ends the answer with that token.
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
        rows = staying or [0]  # who is done runs along with a row that nobody looks at
        rows_B = torch.tensor(rows, device=logits_BV.device) if len(rows) < len(tokens) else None
        live, tokens = [live[row] for row in staying], [tokens[row] for row in rows]
        logits_BV = decoding.advance(torch.tensor(tokens, device=logits_BV.device), rows_B)


class CausalDecoding:
    """Continuations by a decoder-only model with a KV cache.

    Args:
        module: the model.
        prompts: each of at least one token.
        shared: tokens that all of them begin with, if those are to be run once; see `shared_length`.
        pad_id: any id; what stands there is masked.
    """

    def __init__(self, module: nn.Module, prompts: Prompts, *, shared: int, pad_id: int) -> None:
        self._module, self._prompts, self._shared, self._pad_id = module, prompts, shared, pad_id
        self._cache: Any = None
        self._mask_BL = torch.empty(0, dtype=torch.long)

    def begin(self) -> Tensor:
        """See `Decoding`."""
        device = next(self._module.parameters()).device
        shared = self._shared
        if shared:
            self._mask_BL = torch.ones(1, shared, dtype=torch.long, device=device)
            self._run(torch.tensor([list(self._prompts[0][:shared])], device=device))
            self._cache.batch_repeat_interleave(len(self._prompts))
        rests = [list(prompt[shared:]) for prompt in self._prompts]
        width = max(map(len, rests))
        real = [[1] * shared + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
        self._mask_BL = torch.tensor(real, device=device)
        padded = [[self._pad_id] * (width - len(rest)) + rest for rest in rests]
        return self._run(torch.tensor(padded, device=device))

    def advance(self, tokens_B: Tensor, rows_B: Tensor | None) -> Tensor:
        """See `Decoding`."""
        if rows_B is not None:
            self._cache.batch_select_indices(rows_B)
            self._mask_BL = self._mask_BL[rows_B]
        self._mask_BL = torch.cat([self._mask_BL, self._mask_BL.new_ones(len(tokens_B), 1)], dim=1)
        return self._run(tokens_B[:, None])

    def _run(self, input_ids_BL: Tensor) -> Tensor:
        position_BL = (self._mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids_BL.shape[1] :]
        output = self._module(
            input_ids=input_ids_BL,
            attention_mask=self._mask_BL,
            position_ids=position_BL,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


def shared_length(prompts: Prompts) -> int:
    """Tokens that all prompts begin with, if there are enough of them to be worth a forward of their own."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1
    same = next((i for i in range(shortest) if len({prompt[i] for prompt in prompts}) > 1), shortest)
    return same if same >= 8 else 0
