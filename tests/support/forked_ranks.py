"""Ranks that are forked instead of started, for tests that kill one after the other.

    with forked_ranks():
        group.load(plan, epoch=1)

They are processes with a pid, a group, a log and a connection, as `RankProcesses` starts them, and run the same
program; they have its imports already. All of a group have one seed of Python's hashes, which ranks of a user do not:
that they agree all the same is for ranks that a test starts.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.forked import Forked, run_program
from workers.controller import rank_processes
from workers.controller.rank_processes import RankSpec

PROGRAM = list(RankSpec().program)
HAS_DEVICE = Path("/dev/nvidiactl").exists()
"""Whether imports may open a device of NVIDIA's, which a forked process could not use."""


@contextmanager
def forked_ranks() -> Iterator[None]:
    """Fork every rank that is started with the usual program from now on, also by a group that was made before."""
    with pytest.MonkeyPatch.context() as patch:
        started = SimpleNamespace(Popen=_start, DEVNULL=subprocess.DEVNULL)
        patch.setattr(rank_processes, "subprocess", started)
        yield


def _start(argv: Sequence[str], **how: Any) -> Any:
    """Take the place of `subprocess.Popen` in `RankProcesses`."""
    words = list(argv[len(PROGRAM) :])
    if argv[: len(PROGRAM)] != PROGRAM or HAS_DEVICE:
        return subprocess.Popen(argv, **how)
    inherited = [Connection(os.dup(number)) for number in how["pass_fds"]]
    try:
        return Forked(_run, (words, inherited), how["env"], Path(how["stdout"].name), group=how["process_group"])
    finally:
        for connection in inherited:
            connection.close()


def _run(words: list[str], inherited: list[Connection]) -> object:
    """Become the rank: the server is its parent, and its connection has another number here."""
    words[words.index("--parent") + 1] = str(os.getppid())
    if inherited:
        words[words.index("--connection") + 1] = str(inherited[0].fileno())
    return run_program("workers.rank.__main__", *words)
