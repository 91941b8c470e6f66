"""Reading the beginning of a sequence once, where only what follows is asked again and again.

Under causal attention nothing that follows changes a token. So an edit's passes, which change what the weights give at
the subject, read the tokens left of it once and keep their keys and values of attention; the tokens from there on run
again in each pass, as a decoder's next tokens do (DECISIONS.md, 86).

Legend: B sequences, S columns of what is kept, L columns of what follows, H heads, D size of a head, W hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache

from editors.models.generation import Beginning, CausalDecoding, beginnings, masked, shared_length

Kept = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of attention, of one block after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A sequence whose beginning was read."""

    kept: Kept
    """What the blocks from the first edited one on keep, H x S x D."""
    hidden_LW: Tensor | None
    """What enters that block of the tokens that follow; None where it is the model's first."""
    returns_tuple: bool
    """Whether this architecture's blocks return a tuple rather than a tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """The beginnings of the sequences of a batch.

    They are padded on the left, so that no padding is between two tokens: windows and slopes of attention count
    columns.
    """

    kept: Kept
    """What the blocks from `first` on keep, B x H x S x D, without gradient."""
    first: int
    """How many blocks do not run, so that nothing is kept for them."""
    mask_BL: Tensor
    """Over S + L columns: 1 where a token is, 0 at padding of either end."""

    @classmethod
    def of(cls, begun: Sequence[Begun], num_rest: Sequence[int], *, first: int) -> Self:
        """Put the beginnings of sequences together.

        Args:
            begun: of each sequence.
            num_rest: how many tokens of each follow.
            first: number of the first block that is kept.
        """
        lengths = [one.kept[0][0].shape[1] for one in begun]
        width = max(1, *lengths)  # a cache of no column is none
        kept = tuple(
            (
                torch.stack([pad(keys, (0, 0, width - keys.shape[1], 0)) for keys, _ in of_block]),
                torch.stack([pad(values, (0, 0, width - values.shape[1], 0)) for _, values in of_block]),
            )
            for of_block in zip(*(one.kept for one in begun), strict=True)
        )
        columns_L = torch.arange(-width, max(num_rest))[None, :]
        left_B1, rest_B1 = (torch.tensor(counts)[:, None] for counts in (lengths, num_rest))
        mask_BL = (columns_L >= -left_B1) & (columns_L < rest_B1)
        return cls(kept=kept, first=first, mask_BL=mask_BL.long().to(kept[0][0].device))

    def inputs(self, module: nn.Module, num_columns: int) -> dict[str, Any]:
        """Return what a forward of the L columns that follow takes beside their tokens."""
        cache = DynamicCache()
        keys, values = self.kept[0]
        for block in range(self.first):  # models count columns by what the first block keeps
            cache.update(torch.zeros_like(keys), torch.zeros_like(values), block)
        for block, (keys, values) in enumerate(self.kept, start=self.first):
            cache.update(keys, values, block)
        return {"past_key_values": cache, "use_cache": True, **masked(module, self.mask_BL, num_columns)}


@torch.no_grad()
def read_left(module: nn.Module, starts: Sequence[tuple[int, ...]], *, pad_id: int, forward_tokens: int) -> list[Kept]:
    """Return what all blocks keep of the beginnings of sequences, H x S x D each; what several have is read once.

    Args:
        module: the model; side branches that are entered count.
        starts: the token ids of each beginning, of some perhaps none.
        pad_id: any token id.
        forward_tokens: what a forward costs beside its tokens, in tokens.
    """
    distinct = list(dict.fromkeys(ids or (pad_id,) for ids in starts))
    plan = beginnings(distinct, forward_tokens=forward_tokens)
    groups = [[distinct[place] for place in group] for group in plan]
    begun = [Beginning(prompts=prompts, shared=shared_length(prompts)) for prompts in groups]
    kept = CausalDecoding(module, begun, pad_id=pad_id, keeps_all=True).read()
    row_of = {distinct[place]: row for row, place in enumerate(place for group in plan for place in group)}
    width = kept[0][0].shape[2]
    # Copies: a view would hold the whole batch for as long as one of its rows.
    return [
        tuple(
            (keys[row, :, width - len(ids) :].clone(), values[row, :, width - len(ids) :].clone())
            for keys, values in kept
        )
        for ids in starts
        for row in [row_of[ids or (pad_id,)]]
    ]
