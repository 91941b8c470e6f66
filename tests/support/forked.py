"""Programs of ours that tests start again and again, forked from a process that has imported them once.

    with forked("pipeline.entrypoints.consumer", environment=environment, log=log) as intake:
        intake.send_signal(signal.SIGTERM)
        assert intake.wait(patience()) == 0

Each is a process of its own, with its own environment and log, and dies its own death; what it is spared is more than a
second of imports, and five where it holds a model. `subprocess` is for tests of how a program starts, and of what it
holds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.waiting import patience

PROGRAMS = (
    "pipeline.entrypoints.consumer",
    "tests.support.edit_program",
    "tests.support.imports_of_ranks",
    "tests.support.imports_of_stores",
    "tests.support.ranks_of_tests",
)
"""What the server imports: modules whose `main` returns an exit status, and what ranks import before they load a base,
and others when they open their stores. None of them does anything at import."""
_FORKS = multiprocessing.get_context("forkserver")
_LOCK = threading.Lock()
"""Held where a process is started or looked at: the library reads an exit status once, and threads may ask together."""


class Forked:
    """A running process, used as `subprocess.Popen` is.

    Args:
        main: what it runs, after it has become a process of its own; a function of a module.
        arguments: of `main`; an open connection among them is inherited.
        environment: all of its environment.
        log: file that it appends its output to.
        group: process group that it joins; 0 for one of its own, None for this process's.
    """

    def __init__(
        self,
        main: Callable[..., object],
        arguments: Sequence[object],
        environment: Mapping[str, str],
        log: Path,
        *,
        group: int | None = None,
    ) -> None:
        log.touch()  # a test may read it before the program has said anything
        begun, begins = _FORKS.Pipe(duplex=False)
        with _LOCK, begun, begins:
            _FORKS.set_forkserver_preload(list(PROGRAMS))
            # As a daemon, so that a test session that breaks off does not wait for it.
            self._process = _FORKS.Process(
                target=_run, args=(begins, group, dict(environment), log, main, arguments), daemon=True
            )
            self._process.start()
            begins.close()
            begun.recv()  # it is in its group, so that whoever kills the group kills it

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative after a signal; None while it runs."""
        with _LOCK:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once it has ended.

        Raises:
            subprocess.TimeoutExpired: if it has not ended by then.
        """
        multiprocessing.connection.wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return status

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
    assert program in PROGRAMS, f"expected a program that is imported ahead, got {program}"
    process = Forked(run_program, (program, *words), environment, log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(patience())


def run_program(program: str, *words: str) -> object:
    """Run the `main` of a module and return what it returns."""
    sys.argv = [program, *words]
    return importlib.import_module(program).main()


def _run(
    begins: Connection,
    group: int | None,
    environment: dict[str, str],
    log: Path,
    main: Callable[..., object],
    arguments: Sequence[object],
) -> None:
    """Become the program."""
    if group is not None:
        os.setpgid(0, group)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # the one of the environment
    os.chdir(ROOT)
    with log.open("ab") as said:
        for standard in (1, 2):
            os.dup2(said.fileno(), standard)
    begins.send(None)
    begins.close()
    sys.exit(main(*arguments))  # type: ignore[arg-type]
