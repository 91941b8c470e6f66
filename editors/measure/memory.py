"""How much memory some work took above what was held before it.

    memory = WatchedMemory(device)
    with memory.watching():
        work()
    memory.peak_bytes

On a CPU that is the resident set, whose peak Linux lets a process reset; on CUDA it is what the allocator gave out.
Where neither can be read, the figure is None.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux tells a process its resident set, and lets it reset the peak."""


class WatchedMemory:
    """The memory of several stretches of work, without what is allocated between them.

    Args:
        device: the device on which the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held = 0
        self._peak: int | None = None

    @property
    def peak_bytes(self) -> int | None:
        """The most bytes that were held above what there was at the start; None where that cannot be measured."""
        return self._peak

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the memory that the body takes, and what of it stays held afterwards."""
        before = self._start()
        try:
            yield
        finally:
            if before is not None:
                self._peak = max(self._peak or 0, self._held + self._most() - before)
                self._held += self._now() - before

    def _start(self) -> int | None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return self._now()
        _trim()
        try:
            CLEAR.write_text("5")  # makes VmHWM, the peak, start again from VmRSS
            return _resident("VmRSS")
        except (OSError, LookupError):
            return None

    def _most(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _resident("VmHWM")

    def _now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        _trim()
        return _resident("VmRSS")


def peak_bytes() -> int | None:
    """Return the most bytes that this process ever held, resident or given out by CUDA's allocator; None if unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        return _resident("VmHWM")
    except (OSError, LookupError):
        return None


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(name)
    return int(found[1]) * 1024


def _trim() -> None:
    """Let the C library give freed memory back, so that the resident set is what is held."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
