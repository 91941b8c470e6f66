"""Runs modules that need torch in processes of their own, and brings their errors home. Never imports them."""

from __future__ import annotations

import subprocess
import sys

from pipeline.domain import errors
from pipeline.domain.errors import CorrigendaError, EngineFailed


def run_module(module: str, *arguments: str) -> str:
    """What one of our modules prints.

    Raises:
        CorrigendaError: of the class that the module named on its last line of standard error
            (`WrongBase: expected …`); EngineFailed with that line, if it names none.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise _named(last) or EngineFailed(f"{module} ended with status {done.returncode}: {last}")
    return done.stdout


def _named(line: str) -> CorrigendaError | None:
    name, _, sentence = line.partition(": ")
    found = getattr(errors, name, None)
    if sentence and isinstance(found, type) and issubclass(found, CorrigendaError):
        return found(sentence)
    return None
