"""Processes that a test watches."""

from __future__ import annotations

from pathlib import Path


def stat(pid: int) -> list[str]:
    """Return what proc(5) lists from the state on; nothing for a process that is gone or only waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] in "ZX" else fields


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, whether or not its parent has asked for its status."""
    return not stat(pid)
