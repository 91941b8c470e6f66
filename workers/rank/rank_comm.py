"""What the ranks of a group share over gloo, in host memory, whatever moves the weights. Knows no command.

Implements `editors.models.comm.Comm`, and hands rank 0's requests to the others.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

from workers.rank.sharded_model import host_group

Value = TypeVar("Value")


class RankComm:
    """The ranks that have joined; made once, on all of them."""

    def __init__(self) -> None:
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        self._group = host_group()

    def gathered(self, own: Value) -> list[Value]:
        """See `Comm`."""
        if self.num_ranks == 1:
            return [own]
        found: list[Value | None] = [None] * self.num_ranks
        dist.all_gather_object(found, own, group=self._group)
        return found  # type: ignore[return-value]  # every place is filled now

    def hand_out(self, body: bytes | None) -> bytes:
        """Rank 0's request, on every rank."""
        if self.num_ranks == 1:
            assert body is not None
            return body
        length = torch.tensor([len(body or b"")])
        dist.broadcast(length, src=0, group=self._group)
        content = torch.frombuffer(bytearray(body or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(content, src=0, group=self._group)
        return content.numpy().tobytes()
