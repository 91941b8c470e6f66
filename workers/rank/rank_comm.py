"""Communication of the ranks of a group, over gloo in host memory, whatever moves the weights.

Implements `editors.models.comm.Comm`, and hands the requests that rank 0 reads to the others.
"""

from __future__ import annotations

import io
import pickle
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from workers.rank.sharded_model import host_group

Value = TypeVar("Value")


class RankComm:
    """The ranks that have joined. Make it once, and on all of them at the same time."""

    def __init__(self) -> None:
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        self._group = host_group()

    def gathered(self, own: Value) -> list[Value]:
        """Return the values of all ranks in order. Tensors travel as bytes; only what is around them is pickled."""
        if self.num_ranks == 1:
            return [own]
        pickler = _AroundTensors()
        frame, tensors = pickler.dumped(own), save(pickler.tensors)
        sizes = self._all_gather(torch.tensor([len(frame), len(tensors)]))
        body = torch.frombuffer(bytearray(frame + tensors), dtype=torch.uint8)
        longest = max(int(size.sum()) for size in sizes)  # all_gather wants the same length of every rank
        bodies = self._all_gather(torch.nn.functional.pad(body, (0, longest - len(body))))
        found = []
        for body, (end, rest) in zip(bodies, (size.tolist() for size in sizes), strict=True):
            content = body.numpy()
            held = load(content[end : end + rest].tobytes())
            found.append(_IntoTensors(io.BytesIO(content[:end].tobytes()), held).load())
        return found

    def hand_out(self, body: bytes | None) -> bytes:
        """Return rank 0's request, on every rank; the others give None."""
        if self.num_ranks == 1:
            assert body is not None
            return body
        length = torch.tensor([len(body or b"")])
        dist.broadcast(length, src=0, group=self._group)
        content = torch.frombuffer(bytearray(body or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(content, src=0, group=self._group)
        return content.numpy().tobytes()

    def _all_gather(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.num_ranks)]
        dist.all_gather(found, own, group=self._group)
        return found


class _AroundTensors(pickle.Pickler):
    """Pickles a value with a name in the place of each tensor."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: dict[str, Tensor] = {}

    def dumped(self, value: object) -> bytes:
        self.dump(value)
        return self._file.getvalue()

    def persistent_id(self, value: object) -> tuple[str, list[int]] | None:
        if not isinstance(value, Tensor):
            return None
        name = str(len(self.tensors))
        # A transposed tensor arrives transposed: the last bits of a product depend on how its factors lie in memory.
        order = sorted(range(value.dim()), key=lambda dim: value.stride()[dim], reverse=True)
        # A copy, because safetensors refuses tensors that share memory.
        self.tensors[name] = value.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format)
        return name, order


class _IntoTensors(pickle.Unpickler):
    """Reads what `_AroundTensors` wrote, on the other ranks of the same group."""

    def __init__(self, file: io.BytesIO, tensors: dict[str, Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, place: tuple[str, list[int]]) -> Tensor:
        name, order = place
        return self._tensors[name].permute([order.index(dim) for dim in range(len(order))])
