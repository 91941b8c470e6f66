"""Reading the beginning of a sequence once, where only what follows is asked again and again.

Under causal attention nothing that follows changes a token. So an edit's passes, which change what the weights give at
the subject, read the tokens left of it once and keep their keys and values of attention; the tokens from there on run
again in each pass, as a decoder's next tokens do (DECISIONS.md, 86).

Legend: B sequences, S columns of what is kept, L columns of what follows, H heads, D size of a head, W hidden size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
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
    """What the blocks from `first` on keep, H x S x D."""
    first: int
    """Number of a block: what enters it of the tokens that follow was read too."""
    hidden_LW: Tensor | None
    """What enters it; None where it is the model's first."""
    returns_tuple: bool
    """Whether this architecture's blocks return a tuple rather than a tensor."""

    @property
    def num_tokens(self) -> int:
        """How many tokens were read."""
        return self.kept[0][0].shape[1]


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
    def of(cls, begun: Sequence[Begun], num_rest: Sequence[int]) -> Self:
        """Put the beginnings of sequences together.

        Args:
            begun: of each sequence, all from the same block on.
            num_rest: how many tokens of each follow.
        """
        lengths = [one.num_tokens for one in begun]
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
        return cls(kept=kept, first=begun[0].first, mask_BL=mask_BL.long().to(kept[0][0].device))

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
def read_left(
    module: nn.Module, starts: Sequence[tuple[int, ...]], *, pad_id: int, forward_tokens: int, most_tokens: int
) -> list[Kept]:
    """Return what all blocks keep of the beginnings of sequences, H x S x D each; what several have is read once.

    Args:
        module: the model; side branches that are entered count.
        starts: the token ids of each beginning, of some perhaps none.
        pad_id: any token id.
        forward_tokens: what a forward costs beside its tokens, in tokens.
        most_tokens: most padded tokens of a forward.
    """
    # In this order, a beginning that others go on with stands before the first of them, and is a part of it.
    distinct = sorted(set(starts))
    following = zip(distinct, [*distinct[1:], ()], strict=True)
    longest = [ids for ids, longer in following if longer[: len(ids)] != ids] or [(pad_id,)]
    found: dict[tuple[int, ...], Kept] = {}
    for prompts in _groups(longest, forward_tokens, most_tokens):
        begun = Beginning(prompts=prompts, shared=shared_length(prompts))
        kept = CausalDecoding(module, [begun], pad_id=pad_id, keeps_all=True).read()
        width = kept[0][0].shape[2]
        # Copies: a view would hold the whole batch for as long as one of its rows.
        found |= {
            ids: tuple(
                (keys[row, :, width - len(ids) :].clone(), values[row, :, width - len(ids) :].clone())
                for keys, values in kept
            )
            for row, ids in enumerate(prompts)
        }
    return [
        tuple(
            (keys[:, : len(ids)], values[:, : len(ids)]) for keys, values in found[longest[bisect_left(longest, ids)]]
        )
        for ids in starts
    ]


def _groups(
    prompts: Sequence[tuple[int, ...]], forward_tokens: int, most_tokens: int
) -> Iterator[Sequence[tuple[int, ...]]]:
    """Yield prompts in groups, each of which is read in one forward, behind one of what they all begin with."""
    for places in beginnings(prompts, forward_tokens=forward_tokens):
        group = [prompts[place] for place in places]
        size = max(most_tokens // (max(map(len, group)) - shared_length(group)), 1)
        yield from (group[start : start + size] for start in range(0, len(group), size))
