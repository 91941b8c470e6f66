"""Named boundaries at which a test can make the process die. Each caller names its own."""

from __future__ import annotations

import os
import signal

VARIABLE = "CORRIGENDA_FAILPOINT"
"""`name` or `name:nth`: die when that boundary is reached (for the nth time)."""

_hits: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Die by SIGKILL here if the environment says so; a dictionary look-up otherwise.

    Args:
        name: `subject.step`, unique in the code base, for example `edit.before_commit`.
    """
    armed = os.environ.get(VARIABLE)
    if armed:
        _die_if_due(name, armed)


def _die_if_due(name: str, armed: str) -> None:
    wanted, nth = armed, "1"
    if armed.rpartition(":")[2].isdigit():
        wanted, _, nth = armed.rpartition(":")
    if wanted != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] >= int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
