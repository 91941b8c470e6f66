"""Processes that end with the one that started them, whatever ends that.

`python -m pipeline.tied PID MODULE WORDS` runs a module so. A kill of a command would leave its program behind, which
writes on where the same command, given again, writes too. It is tied before it imports anything heavy, and Ctrl-C in
those seconds is no traceback.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

from pipeline.domain.formats.refusals import INTERRUPTED

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when the thread that started it ends."""


def tie_to_parent(parent: int) -> None:
    """Die with the process that started this one, also by kill -9.

    Args:
        parent: its process id; the program ends here if it is gone already.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"expected process {parent} as parent, got {os.getppid()}")


def main() -> None:
    """Run a module as if Python had been given it with -m; it sees only its own words."""
    parent, module = sys.argv[1:3]
    del sys.argv[1:3]
    tie_to_parent(int(parent))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
