"""Tensors in a few bits a number: how the rows of edits with frames lie in memory and in files.

    keys = Packed.of(keys_TI, bits=6)
    keys.whole()  # T x I, fp32: nearly `keys_TI`; packed again it has the same bits

A number is a signed code c and the scale s of its block of 64: `s c |c|`. Codes are roots because a few values of a
key are many times larger than the others, which count as much for a solve. What is solved with has to be what was
packed, so keys are rounded before they enter a solve (see `editors.methods.passes`).

Legend: T rows, W width, B blocks of a row, G codes of a group, Y bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import Self

import torch
from torch import Tensor

BLOCK = 64
"""Numbers that share a scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Rows of numbers in a few bits each, on the CPU."""

    codes: Tensor
    """T x Y bytes: codes of `bits` bits side by side, each with half of their range added, padded to whole blocks."""
    scales: Tensor
    """T x B, bf16: with 8 bits the product of a scale and a squared code is exact in fp32."""
    width: int
    """W, numbers of a row."""

    @classmethod
    def of(cls, values_TW: Tensor, *, bits: int) -> Self:
        """Pack rows, in any dtype and on any device.

        Args:
            values_TW: the rows; finite.
            bits: of a number, 2 to 8.
        """
        codes_TBK, scales_TB1 = _coded(values_TW, bits)
        codes_TY = _side_by_side(codes_TBK.flatten(1).long() + _largest(bits), bits)
        return cls(codes=codes_TY.cpu(), scales=scales_TB1[:, :, 0].cpu(), width=values_TW.shape[1])

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return 8 * self.codes.shape[1] // (self.scales.shape[1] * BLOCK)

    @property
    def shape(self) -> tuple[int, int]:
        """T and W."""
        return len(self.codes), self.width

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""
        return int(self.codes.nbytes + self.scales.nbytes)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, places: slice | Tensor) -> Self:
        """Return some of the rows; a slice is a view."""
        return type(self)(codes=self.codes[places], scales=self.scales[places], width=self.width)

    def whole(self) -> Tensor:
        """Return the rows as T x W, fp32, in memory of their own."""
        codes_TN = _one_by_one(self.codes, self.bits) - _largest(self.bits)
        return _decoded(_grouped(codes_TN.float(), BLOCK), self.scales[:, :, None], self.width)


def rounded(values_TW: Tensor, *, bits: int) -> Tensor:
    """Return rows as they are once they were packed, fp32 on their device."""
    return _decoded(*_coded(values_TW, bits), values_TW.shape[1])


def packed_bytes(width: int, *, bits: int) -> int:
    """Return the bytes of one packed row."""
    return -(-width // BLOCK) * (BLOCK * bits // 8 + torch.bfloat16.itemsize)


def _largest(bits: int) -> int:
    return (1 << bits - 1) - 1


def _grouped(rows_TN: Tensor, size: int) -> Tensor:
    """Return rows in groups of neighbours, T x N / size x size."""
    return rows_TN.reshape(len(rows_TN), rows_TN.shape[1] // size, size)


def _coded(values_TW: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return signed codes (T x B x 64, fp32) and scales (T x B x 1, bf16)."""
    largest, padding = _largest(bits), -values_TW.shape[1] % BLOCK
    values_TBK = _grouped(torch.nn.functional.pad(values_TW.float(), (0, padding)), BLOCK)
    scales_TB1 = (values_TBK.abs().amax(dim=2, keepdim=True) / largest**2).bfloat16()
    # Below the smallest normal number a scale has too few digits for codes that come back as they were: 0 takes all.
    is_zero_TB1 = scales_TB1 < torch.finfo(torch.bfloat16).tiny
    divisor_TB1 = scales_TB1.float().masked_fill(is_zero_TB1, 1.0)
    codes_TBK = (values_TBK.abs() / divisor_TB1).sqrt().round().clamp(max=largest) * values_TBK.sign()
    return codes_TBK.masked_fill(is_zero_TB1, 0.0), scales_TB1.masked_fill(is_zero_TB1, 0.0)


def _decoded(codes_TBK: Tensor, scales_TB1: Tensor, width: int) -> Tensor:
    values_TBK = codes_TBK * codes_TBK.abs() * scales_TB1.float()
    return values_TBK.flatten(1)[:, :width].contiguous()


def _side_by_side(codes_TN: Tensor, bits: int) -> Tensor:
    """Return codes as bytes; as many codes as fill whole bytes are one integer in between."""
    num_bits = lcm(bits, 8)
    shift_G = torch.arange(0, num_bits, bits, device=codes_TN.device)
    shift_Y = torch.arange(0, num_bits, 8, device=codes_TN.device)
    groups: Tensor = (_grouped(codes_TN, len(shift_G)) << shift_G).sum(dim=2, keepdim=True)
    return ((groups >> shift_Y) & 0xFF).to(torch.uint8).flatten(1)


def _one_by_one(codes_TY: Tensor, bits: int) -> Tensor:
    """Return the codes that `_side_by_side` made bytes of."""
    num_bits = lcm(bits, 8)
    shift_G, shift_Y = torch.arange(0, num_bits, bits), torch.arange(0, num_bits, 8)
    groups: Tensor = (_grouped(codes_TY.long(), len(shift_Y)) << shift_Y).sum(dim=2, keepdim=True)
    codes_TN: Tensor = ((groups >> shift_G) & (2**bits - 1)).flatten(1)
    return codes_TN
