"""Named durable boundaries at which a test can let the process die. Costs one comparison when unset."""

from __future__ import annotations

import os
import signal

_NAME, _, _NTH = os.environ.get("CORRIGENDA_FAILPOINT", "").partition(":")
_passed = 0


def failpoint(name: str) -> None:
    """Die by SIGKILL here if `CORRIGENDA_FAILPOINT` is `name`, or at the nth passing if it is `name:nth`."""
    if name != _NAME:
        return
    global _passed
    _passed += 1
    if _passed == int(_NTH or 1):
        os.kill(os.getpid(), signal.SIGKILL)
