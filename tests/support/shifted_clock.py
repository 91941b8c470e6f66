"""Runs a module in a process whose wall clock is wrong: `python -m tests.support.shifted_clock SECONDS MODULE`.

The monotonic clock stays, as it does where somebody sets the clock of a machine.
"""

from __future__ import annotations

import datetime
import importlib
import runpy
import sys
import time


def shift(seconds: float) -> None:
    """Move this process's wall clock, before anything else has read it."""
    real = time.time

    class Shifted(datetime.datetime):
        """The class of datetimes, with another idea of now."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Shifted:
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Shifted:
            return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

    time.time = lambda: real() + seconds
    time.time_ns = lambda: int(time.time() * 1e9)
    datetime.datetime = Shifted


if __name__ == "__main__":
    # Extensions in C know how large a datetime is, and crash or hang on a larger one: they come first.
    for extension in ("psycopg", "pandas"):
        importlib.import_module(extension)
    shift(float(sys.argv[1]))
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__")
