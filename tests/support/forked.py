"""Programs of ours that tests start again and again, forked from a process that has imported them once.

    with forked("pipeline.entrypoints.consumer", environment=environment, log=log) as intake:
        intake.send_signal(signal.SIGTERM)
        assert intake.wait(patience()) == 0

Each is a process of its own, with its own environment and log, and dies its own death; what it is spared is more than a
second of imports. `subprocess` is for tests of how a program starts, and of what it holds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.waiting import patience

PROGRAMS = ("pipeline.entrypoints.consumer", "tests.support.edit_program")
"""What the server imports: modules whose `main` returns an exit status. None of them does anything at import."""
_FORKS = multiprocessing.get_context("forkserver")


class Forked:
    """A running program, used as `subprocess.Popen` is."""

    def __init__(self, program: str, words: tuple[str, ...], environment: Mapping[str, str], log: Path) -> None:
        assert program in PROGRAMS, f"expected a program that is imported ahead, got {program}"
        log.touch()  # a test may read it before the program has said anything
        _FORKS.set_forkserver_preload(list(PROGRAMS))
        # As a daemon, so that a test session that breaks off does not wait for it.
        self._process = _FORKS.Process(target=_run, args=(program, words, dict(environment), log), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative after a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Return the exit status once it has ended.

        Raises:
            subprocess.TimeoutExpired: if it has not ended by then.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, unless it has ended."""
        self.send_signal(signal.SIGKILL)


@contextmanager
def forked(program: str, *words: str, environment: Mapping[str, str], log: Path) -> Iterator[Forked]:
    """Run a program, which is killed at the end if it still runs.

    Args:
        program: name of its module, one of `PROGRAMS`.
        words: its arguments.
        environment: all of its environment.
        log: file that it appends its output to.
    """
    process = Forked(program, words, environment, log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(patience())


def _run(program: str, words: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
    """Become the program."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    with log.open("ab") as said:
        for standard in (1, 2):
            os.dup2(said.fileno(), standard)
    sys.argv = [program, *words]
    sys.exit(importlib.import_module(program).main())
