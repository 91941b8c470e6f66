"""Tensors in a file of bounded size, where the newest take the place of the oldest.

The file has no name: it is gone with the process, however that ends.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    start: int
    """Offset of its first byte in the file."""
    num_bytes: int
    """Its length in bytes."""
    shape: tuple[int, ...]
    """The tensor's shape."""
    dtype: torch.dtype
    """The tensor's dtype."""


class SpillFile:
    """Tensors by key, in a file that is written round and round.

    A full disk is no error: what was kept until then stays, and nothing more is taken.

    Args:
        max_bytes: the largest size of the file.
        folder: the folder of the file; that of the system for temporary files if None.
    """

    def __init__(self, *, max_bytes: int, folder: Path | None = None) -> None:
        self._max_bytes, self._end, self._is_full = max_bytes, 0, False
        self._places: OrderedDict[Hashable, _Place] = OrderedDict()
        self._file, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)  # the open descriptor keeps the content
        weakref.finalize(self, os.close, self._file)

    @property
    def num_bytes(self) -> int:
        """Size of the tensors that are kept."""
        return sum(place.num_bytes for place in self._places.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor under a new key; a tensor that is larger than the file is left out."""
        content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        if key in self._places or self._is_full or not 0 < len(content) <= self._max_bytes:
            return
        self._make_room(len(content))
        try:
            num_written = os.pwrite(self._file, content, self._end)
        except OSError:
            num_written = 0
        if num_written < len(content):
            self._is_full = True
            return
        self._places[key] = _Place(
            start=self._end, num_bytes=len(content), shape=tuple(tensor.shape), dtype=tensor.dtype
        )
        self._end += len(content)

    def get(self, key: Hashable) -> Tensor | None:
        """Return the tensor bit for bit, on the CPU; None if it was never put in, or is overwritten."""
        place = self._places.get(key)
        if place is None:
            return None
        content = bytearray(os.pread(self._file, place.num_bytes, place.start))
        return torch.frombuffer(content, dtype=place.dtype).view(place.shape)

    def _make_room(self, num_bytes: int) -> None:
        """Forget what the next bytes are written over; at the end of the file, go on at its beginning."""
        if self._end + num_bytes > self._max_bytes:
            self._forget(self._max_bytes)
            self._end = 0
        self._forget(self._end + num_bytes)

    def _forget(self, until: int) -> None:
        """Forget the oldest while they lie between the end of the newest and a byte of the file."""
        while self._places and self._end <= next(iter(self._places.values())).start < until:
            self._places.popitem(last=False)
