"""Modules that need torch, run in processes of their own; their errors come home as ours."""

from __future__ import annotations

import subprocess
import sys

from pipeline.computing import computing_environment
from pipeline.domain.errors import EngineFailed, InvalidInput, named_by

USAGE, USAGE_MARK = 2, ": error: "
"""How argparse refuses words: its exit status, and what stands before the sentence."""


def run_module(module: str, *arguments: str) -> str:
    """Run one of our modules and return what it prints.

    Raises:
        CorrigendaError: of the class that the module names on its last line of standard error
            (`WrongBase: expected …`); InvalidInput if argparse refused the words; else EngineFailed with that line.
    """
    argv = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=computing_environment())
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if done.returncode == USAGE and USAGE_MARK in last:
            raise InvalidInput(last.partition(USAGE_MARK)[2])
        raise named_by(last) or EngineFailed(f"{module} ended with status {done.returncode}: {last}")
    return done.stdout
