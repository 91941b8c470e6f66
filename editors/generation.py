"""Knows greedy decoding of a batch with a KV cache, stopping each answer as early as allowed. Knows no edit.

Our own loop rather than `generate`: an answer can be finished by what it says, what is finished leaves the batch, and
a beginning that all prompts share (the system turn of a chat template) is run once.

Legend: B sequences, L padded length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

IsDone = Callable[[int, Sequence[int]], bool]
"""(place of the prompt, tokens generated so far) -> whether its answer needs no more tokens."""


@torch.no_grad()
def greedy(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    pad_id: int,
    is_done: IsDone = lambda _place, _tokens: False,
) -> list[list[int]]:
    """The most probable continuation of each prompt, without the stop token.

    Args:
        module: a causal model with a KV cache.
        prompts: token ids, each at least one.
        max_new_tokens: most tokens of an answer.
        stop_ids: tokens that end an answer.
        pad_id: any id; what stands there is masked.
        is_done: asked after each token; true ends the answer with that token.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    if not live or max_new_tokens < 1:
        return answers
    logits_BV, cache, mask_BL = _prefill(module, prompts, pad_id)
    while True:
        tokens = logits_BV.argmax(dim=-1).tolist()
        staying = []
        for row, (place, token) in enumerate(zip(live, tokens, strict=True)):
            if token in stop_ids:
                continue
            answers[place].append(token)
            if len(answers[place]) < max_new_tokens and not is_done(place, answers[place]):
                staying.append(row)
        if not staying:
            return answers
        if len(staying) < len(live):
            rows = torch.tensor(staying, device=mask_BL.device)
            cache.batch_select_indices(rows)
            mask_BL = mask_BL[rows]
        live, tokens = [live[row] for row in staying], [tokens[row] for row in staying]
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(live), 1)], dim=1)
        step_B1 = torch.tensor(tokens, device=mask_BL.device)[:, None]
        logits_BV, cache = _step(module, step_B1, mask_BL, cache)


def _prefill(module: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Any, Tensor]:
    """Logits after each prompt, the cache, and the mask of what is real in it."""
    device = next(module.parameters()).device
    shared = _shared_length(prompts)
    cache: Any = None
    if shared:
        start_1L = torch.tensor([list(prompts[0][:shared])], device=device)
        _, cache = _step(module, start_1L, torch.ones_like(start_1L), None)
        cache.batch_repeat_interleave(len(prompts))
    rests = [list(prompt[shared:]) for prompt in prompts]
    width = max(map(len, rests))
    input_ids_BL = torch.tensor([[pad_id] * (width - len(rest)) + rest for rest in rests], device=device)
    real = [[1] * shared + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
    mask_BL = torch.tensor(real, device=device)
    logits_BV, cache = _step(module, input_ids_BL, mask_BL, cache)
    return logits_BV, cache, mask_BL


def _step(module: nn.Module, input_ids_BL: Tensor, mask_BL: Tensor, cache: Any) -> tuple[Tensor, Any]:
    position_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids_BL.shape[1] :]
    output = module(
        input_ids=input_ids_BL,
        attention_mask=mask_BL,
        position_ids=position_BL,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1], output.past_key_values


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, if there are enough of them to be worth a forward of their own."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1
    same = next((i for i in range(shortest) if len({prompt[i] for prompt in prompts}) > 1), shortest)
    return same if same >= 8 else 0
