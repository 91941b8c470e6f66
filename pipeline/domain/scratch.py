"""Temporary folders that bear the name of their owner, so that those of a killed process go at the next start."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_NAME = re.compile(r"corrigenda-[a-z]+-(?P<machine>[0-9a-f]{8})\.(?P<pid>\d+)\.(?P<start>\d+)-.+")


def scratch_folder(purpose: str) -> tempfile.TemporaryDirectory[str]:
    """Return a fresh folder in the system's place for temporary ones; it goes with the object, or with the process.

    A process that is killed by SIGKILL leaves it behind. The first folder that another process asks for takes it away.

    Args:
        purpose: what it is for, in small letters, to be read in its name.
    """
    _sweep_once(tempfile.gettempdir())
    pid = os.getpid()
    return tempfile.TemporaryDirectory(prefix=f"corrigenda-{purpose}-{_machine()}.{pid}.{_start_of(pid)}-")


def sweep(root: Path) -> list[str]:
    """Remove folders whose owner has ended, and only those; return their names.

    Age says nothing: a process may run for weeks. The owner is known by its number and the moment it began, on this
    boot of the machine and in this container; folders of any other are left alone.
    """
    left = [entry for entry in os.listdir(root) if (match := _NAME.fullmatch(entry)) and _has_ended(match)]
    ours = [entry for entry in left if (root / entry).lstat().st_uid == os.geteuid()]
    for entry in ours:
        shutil.rmtree(root / entry, ignore_errors=True)
    return ours


@cache
def _sweep_once(root: str) -> None:
    with suppress(OSError):
        sweep(Path(root))


@cache
def _machine() -> str:
    """Return a name of this boot and this space of process ids: outside of it, numbers mean other processes."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256((boot + os.readlink("/proc/self/ns/pid")).encode()).hexdigest()[:8]
    return "0" * 8


def _has_ended(owner: re.Match[str]) -> bool:
    return owner["machine"] == _machine() and _start_of(int(owner["pid"])) != owner["start"]


def _start_of(pid: int) -> str:
    """Return when a process began, in ticks since the boot; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
