"""Bounded waits whose bound grows with the load of the machine: a busy machine is no failure, a hang is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

SECONDS = 120.0
"""How long anything may take on an idle machine. Only a test that fails waits so long."""
POLL_SECONDS = 0.02


def patience(seconds: float = SECONDS) -> float:
    """Return for how many seconds to wait now for what an idle machine does within `seconds`.

    A process gets about one part in `load / cores` of a core, so the wait grows by as much.
    """
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def eventually(holds: Callable[[], object], what: str | Callable[[], str], *, seconds: float = SECONDS) -> None:
    """Poll until something holds; fail the test if it does not in time.

    Args:
        holds: what is polled.
        what: is waited for, for the message of the failure; a function is called only then.
        seconds: the bound on an idle machine.
    """
    began = time.monotonic()
    while not holds():
        # The bound is asked for anew each time: the load may have risen since.
        if time.monotonic() - began > patience(seconds):
            raise AssertionError(f"waited in vain for {what if isinstance(what, str) else what()}")
        time.sleep(POLL_SECONDS)
