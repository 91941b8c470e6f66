"""How a program ends whose words cannot be read, or that is interrupted.

What argparse refuses is said in one sentence: the usage before it is longer than a screen where options are many.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

REFUSED = 2
"""Status with which argparse ends a program whose words it cannot read."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as of shells: 128 and SIGINT."""


@contextmanager
def refused_in_a_sentence() -> Iterator[None]:
    """Let a parser that is used inside refuse words without its usage; all else that is said stays."""
    told = io.StringIO()
    first = 0
    try:
        with redirect_stderr(told):
            yield
    except SystemExit as end:
        first = -1 if end.code == REFUSED else 0
        raise
    finally:
        sys.stderr.writelines(told.getvalue().splitlines(keepends=True)[first:])
        sys.stderr.flush()
