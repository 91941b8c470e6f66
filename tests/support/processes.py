"""Processes that a test watches."""

from __future__ import annotations

import contextlib
import os
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

LISTENS = "0A"
"""State of a listening socket in /proc/net/tcp."""


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


def listening(pid: int) -> set[IPv4Address | IPv6Address]:
    """Return the addresses on which a process has sockets that listen, of whatever port."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            own.add(os.readlink(descriptor))
    lines = [line.split() for name in ("tcp", "tcp6") for line in _lines(Path(f"/proc/{pid}/net/{name}"))]
    return {
        _address(line[1].partition(":")[0]) for line in lines if line[3] == LISTENS and f"socket:[{line[9]}]" in own
    }


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with."""
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _lines(table: Path) -> list[str]:
    return table.read_text().splitlines()[1:] if table.exists() else []


def _address(words: str) -> IPv4Address | IPv6Address:
    """Return the address of a kernel's table: words of four bytes, the lowest byte first."""
    parts = [bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8)]
    return ip_address(b"".join(parts))
