"""Targets of rows that share shifts, and how many bits the rows of edits with frames have.

Legend: T rows, H shifts, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from editors.solve.packing import Packed

KEY_BITS = 6
"""Bits of a number of a packed key. Keys are rounded before a solve: an edit leaves by those by which it came."""
HELD_WEIGHT = 16
"""How many times heavier the rows at an edit's subject count once it is made. A power of 4: packed keys times its root
are exact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedTargets:
    """Absolute targets of rows that share shifts: `Y = Z + P R`."""

    held_TO: Tensor
    """Z (T x O): what the weights before the edits gave at the keys, in units of `scale_T` and in fp16. What of Z is
    rounded away stays in the weights when an edit leaves, 2^-12 of it; so rows that are held harder, whose Z has what
    the edits reached as well, have it in fp32."""
    scale_T: Tensor
    """The largest number of each row of Z, fp32."""
    asked_HO: Tensor
    """R: the shift that was asked, fp32."""
    shift_T: Tensor
    """Which shift each row asks for, int32; -1 for a guard's, which asks for none."""
    root_T: Tensor
    """Root of each row's weight, fp32: what of the shift is asked at the row."""

    @classmethod
    def of(cls, held_TO: Tensor, spread_TH: Tensor, asked_HO: Tensor, *, dtype: torch.dtype = torch.float16) -> Self:
        """Return targets whose part that rows do not share is packed.

        Args:
            held_TO: Z.
            spread_TH: P: the root of a row's weight at its shift, and 0 elsewhere.
            asked_HO: R.
            dtype: of Z.
        """
        num_shifts = spread_TH.shape[1]
        root_T = spread_TH.sum(dim=1)
        scale_T = held_TO.abs().amax(dim=1).float()
        shift_T = spread_TH.argmax(dim=1) if num_shifts else torch.zeros(len(root_T), device=root_T.device)
        return cls(
            held_TO=(held_TO / scale_T.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).to(dtype).cpu(),
            scale_T=scale_T.cpu(),
            asked_HO=asked_HO.float().cpu(),
            shift_T=shift_T.masked_fill(root_T == 0, -1).int().cpu(),
            root_T=root_T.float().cpu(),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the targets of some parts, one after the other; each has shifts of its own."""
        return cls(
            held_TO=torch.cat([one.held_TO for one in parts]),
            scale_T=torch.cat([one.scale_T for one in parts]),
            asked_HO=torch.cat([one.asked_HO for one in parts]),
            shift_T=torch.cat(cls.shifts_of(parts)),
            root_T=torch.cat([one.root_T for one in parts]),
        )

    @staticmethod
    def shifts_of(parts: Sequence[SharedTargets]) -> list[Tensor]:
        """Return which shift each row of each part asks for, once the shifts of all parts are in one list."""
        firsts = accumulate((len(one.asked_HO) for one in parts), initial=0)
        return [one.shift_T + first * (one.shift_T >= 0).int() for one, first in zip(parts, firsts, strict=False)]

    @property
    def shape(self) -> tuple[int, int]:
        """T and O."""
        return len(self.held_TO), self.held_TO.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that the targets take."""
        parts = (self.held_TO, self.scale_T, self.asked_HO, self.shift_T, self.root_T)
        return sum(part.nbytes for part in parts)

    def __len__(self) -> int:
        return len(self.held_TO)

    def __getitem__(self, places: slice | Tensor) -> Self:
        """Return the targets of some rows and the shifts that these ask for."""
        shift_T = self.shift_T[places]
        asking = shift_T[shift_T >= 0]
        first = int(asking.min()) if len(asking) else 0
        end = int(asking.max()) + 1 if len(asking) else 0
        used_H = torch.unique(asking).long()
        if len(used_H) < end - first:  # edits between them are left out
            place_H = torch.full((end,), -1, dtype=shift_T.dtype)
            place_H[used_H] = torch.arange(len(used_H), dtype=shift_T.dtype)
            shift_T = torch.where(shift_T >= 0, place_H[shift_T.clamp(min=0).long()], shift_T)
            asked_HO = self.asked_HO[used_H]
        else:
            shift_T, asked_HO = shift_T - first * (shift_T >= 0).int(), self.asked_HO[first:end]
        return type(self)(
            held_TO=self.held_TO[places],
            scale_T=self.scale_T[places],
            asked_HO=asked_HO,
            shift_T=shift_T,
            root_T=self.root_T[places],
        )

    def whole(self) -> Tensor:
        """Return Y, T x O, fp32, in memory of their own."""
        targets_TO = self.held_TO.float() * self.scale_T[:, None]
        asking = (self.shift_T >= 0).nonzero()[:, 0]
        targets_TO[asking] += self.root_T[asking, None] * self.asked_HO[self.shift_T[asking].long()]
        return targets_TO


def held_harder(
    keys_TI: Tensor, held_TO: Tensor, spread_TH: Tensor, reached_TO: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows that later solves hold harder than they were asked, and that define the same weights.

    With v - 1 further rows at a key, whose target is what the weights now give there, A and B grow alike:

        k' = sqrt(v) k        y' = (y + (v - 1) S^T k) / sqrt(v)        k' k'^T S - k' y'^T = k k^T S - k y^T

    Guards stay: what they hold is no fact of their edit.

    Args:
        keys_TI: K, each key times the root of its row's weight.
        held_TO: Z.
        spread_TH: P.
        reached_TO: K S, with the weights that the rows define.

    Returns:
        K, Z and P of the heavier rows.
    """
    is_guard_T = spread_TH.sum(dim=1) == 0
    weight_T = torch.full_like(held_TO[:, 0], HELD_WEIGHT).masked_fill(is_guard_T, 1.0)
    further_T1, root_T1 = weight_T[:, None] - 1, weight_T[:, None].sqrt()
    return keys_TI * root_T1, (held_TO + further_T1 * reached_TO) / root_T1, spread_TH / root_T1


def whole(rows: Tensor | Packed | SharedTargets) -> Tensor:
    """Return rows as a tensor, whichever way they are kept."""
    return rows if isinstance(rows, Tensor) else rows.whole()
