"""Knows how much memory a stretch of work took above what was held before it, and how much of it was kept.

On a CPU that is the resident set, whose peak Linux lets a process forget; on CUDA what the allocator gave out. Where
neither can be read, nothing is claimed.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class WatchedMemory:
    """Memory of some stretches of work, whatever happens between them.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held = 0
        self._peak: int | None = None

    @property
    def peak_bytes(self) -> int | None:
        """The most that was held above what there was at the start; None where it cannot be measured."""
        return self._peak

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what the body takes, and what it keeps."""
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
            CLEAR.write_text("5")
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
    """The most that this process ever held: resident on a CPU, given out by the allocator on CUDA; None if unknown."""
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
    """Let the C library give back what was freed, so that the resident set is what is held."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
