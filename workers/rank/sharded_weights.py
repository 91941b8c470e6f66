"""The edited weights on ZeRO-3 partitions: pristine base and fp32 accumulator of this rank's slice only.

A low-rank delta is applied without gathering the weight: each rank computes the rows that its slice touches.

Legend: I in_features, O out_features, R rank; A x B the weight as it lies (O x I of a Linear, I x O of a Conv1D);
N elements of this rank's slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from editors.models.inner_params import InnerParam, true_shape
from editors.weights.deltas import WeightDelta
from pipeline.domain.formats.canonical import sha256_blocks
from workers.rank.sharded_model import ShardedModel, host_group, is_safe_to_write


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The part of a flattened A x B weight that one rank owns."""

    num_rows: int
    """A: rows of the weight as it lies."""
    num_columns: int
    """B: columns of the weight as it lies."""
    start: int
    """First element of the slice in the flattened weight."""
    stop: int
    """One past the last element; what DeepSpeed pads the last ranks with is not ours."""

    @classmethod
    def of(cls, shape: Sequence[int], *, rank: int, world_size: int) -> Slice:
        """Return the slice of a rank: equal parts, rounded up, the last ones shorter or empty."""
        num_rows, num_columns = shape
        total = num_rows * num_columns
        part = -(-total // world_size)
        return cls(
            num_rows=num_rows,
            num_columns=num_columns,
            start=min(rank * part, total),
            stop=min((rank + 1) * part, total),
        )

    @property
    def rows(self) -> slice:
        """The rows that the slice touches; its first and last row may be partly somebody else's."""
        return slice(self.start // self.num_columns, -(-self.stop // self.num_columns))

    def cut(self, rows_xB: Tensor) -> Tensor:
        """Return the slice's N elements out of the rows that it touches."""
        offset = self.start - self.rows.start * self.num_columns
        return rows_xB.reshape(-1)[offset : offset + self.stop - self.start]


class ShardedWeight:
    """One edited weight, as far as this rank owns it.

    Args:
        weight: the parameter, partitioned by ZeRO-3.
        inner: what it is.
        rank: of this process.
        world_size: ranks that share it.
    """

    def __init__(self, weight: Any, inner: InnerParam, *, rank: int, world_size: int) -> None:
        self._weight, self._inner, self._world_size = weight, inner, world_size
        self._slice = Slice.of(true_shape(weight), rank=rank, world_size=world_size)
        self._part_N = weight.ds_tensor.data[: self._slice.stop - self._slice.start]
        self._base_N = self._part_N.clone()
        self.shift_N = torch.zeros_like(self._base_N, dtype=torch.float32)

    def update(self, factors: tuple[Tensor, Tensor]) -> None:
        """Add `F D` to the accumulator and write; only the rows of this rank are computed."""
        left_IR, right_RO = (factor.to(self._part_N.device) for factor in factors)
        rows = self._slice.rows
        lies_io = self._inner.fan_in_fan_out
        change = left_IR[rows] @ right_RO if lies_io else (left_IR @ right_RO[:, rows]).T
        self.write(self.shift_N + self._slice.cut(change))

    def set_shift(self, shift_IO: Tensor | None) -> None:
        """Replace the accumulator by this rank's slice of a whole shift; zero if None."""
        if shift_IO is None:
            self.write(torch.zeros_like(self.shift_N))
            return
        lying_AB = shift_IO if self._inner.fan_in_fan_out else shift_IO.T
        self.write(self._slice.cut(lying_AB[self._slice.rows]).to(self.shift_N, copy=True))

    def write(self, shift_N: Tensor) -> None:
        """Take an accumulator and write `cast(base + accumulator)`, rounded once."""
        assert is_safe_to_write(self._weight), f"expected {self._inner.name} to be partitioned, got it gathered"
        self.shift_N = shift_N  # replaced, never changed in place: whoever saved the old one still has it
        with torch.no_grad():
            self._part_N.copy_((self._base_N.float() + shift_N).to(self._part_N.dtype))

    def whole_shift(self) -> Tensor:
        """Return the accumulators of all ranks as one I x O tensor; every rank has to call."""
        lying_AB = self._gathered().view(self._slice.num_rows, self._slice.num_columns)
        return lying_AB if self._inner.fan_in_fan_out else lying_AB.T

    def base_norm(self) -> float:
        """Return the Frobenius norm of the base weight; every rank has to call."""
        squared = self._base_N.double().square().sum()
        if self._world_size > 1:
            squared = squared.cpu()
            dist.all_reduce(squared, group=host_group())
        return float(squared.sqrt())

    def part_bytes(self) -> bytes:
        """Return the bytes of this rank's slice of the weight as it is now."""
        return bytes(self._part_N.contiguous().view(torch.uint8).cpu().numpy())

    def _gathered(self) -> Tensor:
        if self._world_size == 1:
            return self.shift_N.to(self._weight.device)
        total = self._slice.num_rows * self._slice.num_columns
        part_size = -(-total // self._world_size)
        padded = torch.zeros(part_size)
        padded[: len(self.shift_N)] = self.shift_N.cpu()
        parts = [torch.empty_like(padded) for _ in range(self._world_size)]
        dist.all_gather(parts, padded, group=host_group())
        return torch.cat(parts)[:total].to(self._weight.device)


class ShardedWeights:
    """`WeightStore` on the partitions of a model, for any number of ranks.

    Args:
        model: holds the base's weights now.
        params: its inner parameters.
    """

    def __init__(self, model: ShardedModel, params: Sequence[InnerParam]) -> None:
        self._model = model
        rank, world_size = dist.get_rank(), dist.get_world_size()
        self._weights = {
            param.name: ShardedWeight(model.module.get_parameter(param.name), param, rank=rank, world_size=world_size)
            for param in params
        }
        self.set_accumulators({})  # base + 0 turns -0.0 into 0.0: done now, the base too is what `restore` gives

    def shift(self, name: str) -> Tensor:
        """Return the whole shift of a weight from the base (I x O, fp32); every rank has to ask."""
        return self._weights[name].whole_shift()

    def apply(self, delta: WeightDelta) -> None:
        """Add a delta to this rank's slices."""
        self._model.release()
        for name, factors in delta.factors.items():
            self._weights[name].update(factors)

    def save(self) -> dict[str, Tensor]:
        """Return this rank's accumulators, to restore its slices from."""
        return {name: weight.shift_N for name, weight in self._weights.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Put this rank's slices back to what `save` returned."""
        self._model.release()
        for name, shift_N in saved.items():
            self._weights[name].write(shift_N)

    def set_accumulators(self, shifts: Mapping[str, Tensor]) -> None:
        """Set this rank's slices to the base plus some shifts."""
        self._model.release()
        for name, weight in self._weights.items():
            weight.set_shift(shifts.get(name))

    def base_norm(self, name: str) -> float:
        """Return the Frobenius norm of a weight in the base; every rank has to ask."""
        return self._weights[name].base_norm()

    def digest(self) -> str:
        """Return the SHA-256 of this rank's slices of the edited weights as they are now."""
        return sha256_blocks(
            block for name, weight in self._weights.items() for block in (name.encode(), weight.part_bytes())
        )
