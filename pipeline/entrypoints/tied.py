"""Runs a module that ends with the process that started it: `python -m pipeline.entrypoints.tied PID MODULE WORDS`.

A kill of a command, also by kill -9, would leave its program behind, which writes on where the same command, given
again, writes too. It is tied before it imports anything heavy, and Ctrl-C in those seconds is no traceback.
"""

from __future__ import annotations

import runpy
import sys

from pipeline.computing import tie_to_parent

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of shells: 128 and SIGINT."""


def main() -> None:
    """Run the module as if Python had been given it with -m; it sees only its own words."""
    parent, module = sys.argv[1:3]
    del sys.argv[1:3]
    tie_to_parent(int(parent))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
