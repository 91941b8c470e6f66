"""Modules that need torch, run in processes of their own; their errors come home as ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

from pipeline.computing import computing_environment
from pipeline.domain.errors import EngineFailed, InvalidInput, named_by
from pipeline.domain.formats.progress import progress_in

USAGE, USAGE_MARK = 2, ": error: "
"""How argparse refuses words: its exit status, and what stands before the sentence."""
GRACE_SECONDS = 5.0
"""For clearing up, before a process is killed that nobody waits for any more."""


def words_of(module: str, *arguments: str) -> list[str]:
    """Return the command line of a process that runs one of our modules, and ends when this one does."""
    return [sys.executable, "-m", "pipeline.tied", str(os.getpid()), module, *arguments]


def run_module(module: str, *arguments: str, tell: Callable[[str], None] | None = None) -> str:
    """Run one of our modules and return what it prints; it ends with this process, whatever ends that.

    Args:
        module: its name.
        arguments: its words.
        tell: is given each sentence by which it says how far it is; they are dropped if None.

    Raises:
        CorrigendaError: of the class that the module names on its last line of standard error
            (`WrongBase: expected …`); InvalidInput if argparse refused the words; else EngineFailed with that line.
    """
    # What it prints goes into a file, so that it never waits for us to read that while we read what it says meanwhile.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        with subprocess.Popen(
            words_of(module, *arguments),
            stdout=printed,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=computing_environment(),
        ) as process:
            try:
                last = _last_words(process, tell)
            except BaseException:
                end(process)
                raise
        if process.returncode != 0:
            if process.returncode == USAGE and USAGE_MARK in last:
                raise InvalidInput(last.partition(USAGE_MARK)[2])
            raise named_by(last) or EngineFailed(f"{module} ended with status {process.returncode}: {last}")
        printed.seek(0)
        return printed.read()


def end(process: subprocess.Popen[str], *, patience: float = 1.0) -> None:
    """End a process, with time to clear away what it has half written; a second Ctrl-C kills it.

    Args:
        process: is told of Ctrl-C by the terminal, or by this.
        patience: seconds in which it may end without being told by this.
    """
    try:
        # A terminal has told it of Ctrl-C too, and told twice it would leave its clearing up.
        for seconds, number in ((patience, signal.SIGINT), (GRACE_SECONDS, signal.SIGKILL)):
            try:
                process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                process.send_signal(number)
    finally:
        process.kill()


def _last_words(process: subprocess.Popen[str], tell: Callable[[str], None] | None) -> str:
    """Pass on how far a process is until it ends, and return its last line that says something else."""
    last = "it said nothing"
    for line in process.stderr or ():
        sentence = progress_in(line)
        if sentence is None:
            last = line.strip() or last
        elif tell is not None:
            tell(sentence)
    return last
