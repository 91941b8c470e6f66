"""Greedy decoding of a batch, in which each answer stops as early as it may.

This is a loop of our own rather than transformers' `generate`, for four reasons: an answer can be finished by what it
says; a finished answer leaves the batch; a beginning that prompts share (the system turn of a chat template) runs
once; and a checkpoint's generation settings (beams, least lengths, forced tokens) have no influence. Each rank answers
a share of the prompts, and runs along until the last rank is done.

Prompts of unlike length are read in several forwards (`beginnings`), so that padding costs little. Then all answers
grow together, a token of each at a time. Some of them may be answered with branches beside the weights, such as those
that take a change off again: what a model said before and says after it costs one pass over the weights for a token.

Legend: B sequences that are still answered, L padded length, S tokens that some prompts begin with, H heads, D size of
a head, V vocabulary, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache

from editors.models.comm import Comm, merged, own_share
from editors.models.hooks import Addition, Branch, side_branch

Prompts = Sequence[Sequence[int]]
"""The token ids of some prompts."""
IsDone = Callable[[int, Sequence[int]], bool]
"""(place of the prompt, token ids generated so far) -> whether the answer needs no more tokens."""


LEAST_SHARED = 8
"""Fewest tokens that are worth a forward of their own where prompts begin with them."""
FORWARD_TOKENS = 32
"""What a forward costs on a CPU beside its tokens, in tokens: it reads every weight once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """Prompts that are read in one forward, behind one of what they all begin with."""

    prompts: Prompts
    """Each of at least one token."""
    shared: int
    """How many tokens they all begin with that are read once; each has more of its own."""
    is_beside: bool = False
    """Whether they are answered with branches beside the weights."""


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
    decode: Callable[[Sequence[Beginning]], Decoding],
    prompts: Prompts,
    *,
    comm: Comm,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    is_done: IsDone = never_done,
    plan: Sequence[Sequence[int]] | None = None,
    can_share: bool = False,
    beside: Collection[int] = (),
) -> list[list[int]]:
    """Return the greedy answer to each prompt as token ids, without the stop token; every rank has to call it.

    Args:
        decode: begins the answers to some of the prompts.
        prompts: each of at least one token.
        comm: the ranks that hold the model together.
        max_new_tokens: most tokens of an answer.
        stop_ids: tokens that end an answer.
        is_done: asked after each token; where it is true, the answer ends with that token.
        plan: places of the prompts that are read together, as `beginnings` gives them; all if None.
        can_share: whether what such prompts begin with alike is read once.
        beside: places of the prompts that are answered with branches beside the weights; of those that `plan` puts
            together all, or none.
    """
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    begun: list[Beginning] = []
    live: list[int | None] = []
    for group in plan or [range(len(prompts))]:
        shared = shared_length([prompts[place] for place in group]) if can_share else 0
        # Every rank makes the same forwards: one without a prompt of the group reads another's and drops it.
        own = own_share(comm, group)
        read = [prompts[place] for place in own or group[:1]]
        begun.append(Beginning(prompts=read, shared=shared, is_beside=group[0] in beside))
        live += own or [None]
    answers: dict[int, list[int]] = {place: [] for place in live if place is not None}
    decoding = decode(begun)
    logits_BV = decoding.begin()
    while True:
        tokens = logits_BV.argmax(dim=-1).tolist()
        staying = []
        for row, place in enumerate(live):
            if place is None or tokens[row] in stop_ids:
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
        begun: the prompts, in the order of the batch's rows.
        pad_id: any token id; padding is masked.
        keeps_all: whether layers with a window keep all tokens, as they do where caches are joined.
        branches: inner parameter -> what stands beside its weight for the prompts that are answered with that.
    """

    def __init__(
        self,
        module: nn.Module,
        begun: Sequence[Beginning],
        *,
        pad_id: int,
        keeps_all: bool = False,
        branches: Mapping[str, Branch] | None = None,
    ) -> None:
        self._module, self._begun, self._pad_id = module, begun, pad_id
        self._keeps_all = keeps_all or len(begun) > 1
        self._branches = branches or {}
        self._is_beside_B = torch.empty(0, dtype=torch.bool)
        self._cache: Any = None
        self._mask_BL = torch.empty(0, dtype=torch.long)

    def begin(self) -> Tensor:
        """Read the prompts, padded on the left, and return the logits after each, B x V.

        Padding is on the left, so that every prompt ends, and every answer grows, in the same column.
        """
        logits, caches, masks, are_beside = [], [], [], []
        for one in self._begun:
            logits.append(self._read(one))
            are_beside.append(self._is_beside_B)
            caches.append(self._cache)
            masks.append(self._mask_BL)
        if len(self._begun) > 1:
            width = max(mask_BL.shape[1] for mask_BL in masks)
            self._mask_BL = torch.cat([pad(mask_BL, (width - mask_BL.shape[1], 0)) for mask_BL in masks])
            self._cache = _joined(caches, width)
        self._is_beside_B = torch.cat(are_beside)
        return torch.cat(logits)

    def _read(self, begun: Beginning) -> Tensor:
        """Run the shared beginning once, then the rest of each prompt; logits, B x V.

        No padding is ever between two tokens: windows and slopes of attention count columns. So a shorter prompt takes
        less of what is shared and runs as many tokens of its own as the longest.
        """
        device = next(self._module.parameters()).device
        prompts, shared = begun.prompts, begun.shared
        width = max(map(len, prompts)) - shared
        taken = [max(min(len(prompt) - width, shared), 0) for prompt in prompts]
        # A cache that is joined with others keeps all tokens, also of layers with a window.
        self._cache = DynamicCache() if shared or self._keeps_all else None
        self._is_beside_B = torch.tensor([begun.is_beside], device=device)
        if shared:
            self._mask_BL = torch.ones(1, shared, dtype=torch.long, device=device)
            self._run(torch.tensor([list(prompts[0][:shared])], device=device))
            for layer in self._cache.layers:
                layer.keys, layer.values = (_beginnings(kept, taken) for kept in (layer.keys, layer.values))
        rests = [list(prompt[num:]) for prompt, num in zip(prompts, taken, strict=True)]
        self._mask_BL = torch.tensor(
            [[0] * (shared + width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
        )
        padded = [[self._pad_id] * (width - len(rest)) + rest for rest in rests]
        self._is_beside_B = self._is_beside_B.expand(len(prompts))
        return self._run(torch.tensor(padded, device=device))

    def read(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Read the prompts and return the keys and values of each block, B x H x L x D, padded on the left."""
        self.begin()
        return tuple((layer.keys, layer.values) for layer in self._cache.layers)

    def advance(self, tokens_B: Tensor, rows_B: Tensor | None) -> Tensor:
        """Run one more token of the rows that stay; logits, B x V."""
        if rows_B is not None:
            self._cache.batch_select_indices(rows_B)
            self._mask_BL, self._is_beside_B = self._mask_BL[rows_B], self._is_beside_B[rows_B]
        self._mask_BL = torch.cat([self._mask_BL, self._mask_BL.new_ones(len(tokens_B), 1)], dim=1)
        return self._run(tokens_B[:, None])

    def _run(self, input_ids_BL: Tensor) -> Tensor:
        head: nn.Module = self._module.get_output_embeddings()  # type: ignore[operator]
        handle = head.register_forward_pre_hook(_in_one_piece)
        try:
            with self._beside():
                output = self._module(
                    input_ids=input_ids_BL,
                    **masked(self._module, self._mask_BL, input_ids_BL.shape[1]),
                    past_key_values=self._cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
        finally:
            handle.remove()
        self._cache = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def _beside(self) -> AbstractContextManager[None]:
        """Let the branches stand beside the weights for the rows of the batch that are answered with them."""
        if not self._branches:
            return nullcontext()  # without asking a device which rows
        rows = self._is_beside_B.nonzero()[:, 0]

        def of_rows(left_IR: Tensor, right_RO: Tensor) -> Addition:
            def added(x_BLI: Tensor) -> Tensor:
                added_BLO = x_BLI.new_zeros(*x_BLI.shape[:2], right_RO.shape[1])
                added_BLO[rows] = (x_BLI[rows] @ left_IR) @ right_RO
                return added_BLO

            return added

        here = self._branches if len(rows) else {}
        return side_branch(self._module, {name: of_rows(*branch) for name, branch in here.items()})


def masked(module: nn.Module, mask_BL: Tensor, num_columns: int) -> dict[str, Tensor]:
    """Return the mask of all columns, and the positions of the last ones, as a model's forward takes them.

    Positions count real tokens: padding before a prompt must not move it. Models with ALiBi have none.
    """
    has_positions = "position_ids" in inspect.signature(module.forward).parameters
    position_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)[:, -num_columns:]
    return {"attention_mask": mask_BL, **({"position_ids": position_BL} if has_positions else {})}


def _in_one_piece(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Copy the last column of hidden states: of a view, torch makes a product for each row."""
    return (arguments[0].contiguous(),)


def _beginnings(kept_1HSD: Tensor, taken: Sequence[int]) -> Tensor:
    """Return the first tokens of what is kept for attention, for each row as many as it takes, at the right end.

    What is left of them is padding, and masked.
    """
    num_shared = kept_1HSD.shape[2]
    first_B1 = torch.tensor([[num_shared - num] for num in taken], device=kept_1HSD.device)
    place_BS = (torch.arange(num_shared, device=kept_1HSD.device)[None, :] - first_B1).clamp(min=0)
    return kept_1HSD[0][:, place_BS].transpose(0, 1).contiguous()


def _joined(caches: Sequence[Any], width: int) -> Any:
    """Return one cache of the rows of several, each padded on the left to a number of columns."""
    joined = DynamicCache()
    for place in range(len(caches[0].layers)):
        layers = [cache.layers[place] for cache in caches]
        keys, values = (
            torch.cat([pad(kept_BHLD, (0, 0, width - kept_BHLD.shape[2], 0)) for kept_BHLD in parts])
            for parts in ([layer.keys for layer in layers], [layer.values for layer in layers])
        )
        joined.update(keys, values, place)
    return joined


def beginnings(prompts: Prompts, *, forward_tokens: int = FORWARD_TOKENS) -> list[list[int]]:
    """Return the places of prompts in groups, each of which is read in one forward.

    Prompts that begin alike are together where that saves more than two forwards cost; the others by length, where
    their padding would cost more than a forward.

    Args:
        prompts: each of at least one token.
        forward_tokens: what a forward costs beside its tokens, in tokens.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        alike.setdefault(tuple(prompt[:LEAST_SHARED]), []).append(place)
    found: list[list[int]] = []
    others: list[int] = []
    for places in alike.values():
        saved = (len(places) - 1) * shared_length([prompts[place] for place in places])
        if saved > 2 * forward_tokens:
            found.append(places)
        else:
            others += places
    padding = 0
    group: list[int] = []
    for place in sorted(others, key=lambda place: -len(prompts[place])):
        padding += len(prompts[group[0]]) - len(prompts[place]) if group else 0
        if padding > forward_tokens:
            found.append(group)
            group, padding = [], 0
        group.append(place)
    return [*found, group] if group else found


def shared_length(prompts: Prompts) -> int:
    """Return how many tokens all prompts begin with; 0 where they are too few to be worth a forward of their own."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1
    same = next((i for i in range(shortest) if len({prompt[i] for prompt in prompts}) > 1), shortest)
    return same if same >= LEAST_SHARED else 0
