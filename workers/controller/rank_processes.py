"""Starts the processes of one group, ties them to this one's life, and ends them. Knows no command that they run.

The parent-death signal of Linux comes when the *thread* that started a child ends. So one thread starts the ranks and
stays until all of them have ended, whoever asked for them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.domain.errors import CorrigendaError, EngineFailed
from pipeline.domain.rank_api import BaseSpec
from workers.commands import Hello
from workers.protocol import HELLOS, receive_frame

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.1
"""How often a wait looks whether a rank has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSpec:
    """What the processes of a group are started with."""

    num_ranks: int = 1
    """How many."""
    deepspeed_config: Path | None = None
    """DeepSpeed JSON; None for the one that is shipped."""
    warm_base: BaseSpec | None = None
    """Base to load before the first command asks for it."""
    log: Path | None = None
    """File that all of them append to; None for this process's standard error."""
    program: tuple[str, ...] = (sys.executable, "-m", "workers.rank")
    """What each of them runs."""


class RankProcesses:
    """One generation of ranks: started, connected to, killed; never started again.

    Args:
        spec: what to start.
    """

    def __init__(self, spec: RankSpec) -> None:
        self._spec = spec
        self._folder = tempfile.TemporaryDirectory(prefix="corrigenda-")  # short: a socket's path has 107 bytes
        self._path = Path(self._folder.name) / "rank.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(1)
        self._started = threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._error: OSError | None = None
        self._keeper = threading.Thread(target=self._start_and_stay, name="ranks", daemon=True)
        self._keeper.start()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids by rank; empty until they are started."""
        return tuple(process.pid for process in self._processes)

    def failure(self, *, within: float = 0.0) -> str | None:
        """What is wrong with the processes, if something is.

        Args:
            within: seconds to wait for something; a rank that has closed its connection is about to end.
        """
        deadline = time.monotonic() + within
        while (problem := self._problem()) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return problem

    def _problem(self) -> str | None:
        if self._error is not None:
            return f"the ranks could not be started: {self._error}"
        for rank, process in enumerate(self._processes):
            if (status := process.poll()) is not None:
                return f"rank {rank} (pid {process.pid}) ended with status {status}{self._last_words()}"
        return None

    def connect(self, deadline: float) -> socket.socket:
        """The connection to rank 0.

        Args:
            deadline: `time.monotonic()` at which to give up.

        Raises:
            EngineFailed: if no rank 0 of this version of the protocol is there in time.
        """
        self._listener.settimeout(POLL_SECONDS)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                try:
                    self._check(connection, deadline)
                except (CorrigendaError, OSError):
                    connection.close()
                    raise
                return connection
            if problem := self.failure():
                raise EngineFailed(f"expected rank 0 to connect, got: {problem}")
        raise EngineFailed("expected rank 0 to connect before the deadline, got nothing")

    def kill(self) -> None:
        """End every process with SIGKILL and wait for it. May be called again."""
        self._started.wait()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    os.killpg(self._processes[0].pid, signal.SIGKILL)
        self._release()

    def wait(self, seconds: float) -> bool:
        """Wait for every process to end by itself; whether it did."""
        self._keeper.join(seconds)
        if self._keeper.is_alive():
            return False
        self._release()
        return True

    def _release(self) -> None:
        self._keeper.join()
        self._listener.close()
        self._folder.cleanup()

    def _check(self, connection: socket.socket, deadline: float) -> None:
        connection.settimeout(max(deadline - time.monotonic(), POLL_SECONDS))
        body = receive_frame(connection)
        hello: Hello | None = None if body is None else HELLOS.decode(body)
        if hello is None or hello.world_size != self._spec.num_ranks:
            raise EngineFailed(f"expected rank 0 of {self._spec.num_ranks} to say hello, got {hello}")

    def _start_and_stay(self) -> None:
        try:
            with contextlib.ExitStack() as files:
                log = files.enter_context(self._spec.log.open("ab")) if self._spec.log else None
                port = _free_port()
                for rank in range(self._spec.num_ranks):
                    self._processes.append(self._start(rank, port=port, log=log))
        except OSError as error:
            self._error = error
            for process in self._processes:
                process.kill()
        finally:
            self._started.set()
        for process in self._processes:
            process.wait()

    def _start(self, rank: int, *, port: int, log: IO[bytes] | None) -> subprocess.Popen[bytes]:
        argv = [*self._spec.program, "--socket", str(self._path), "--parent", str(os.getpid())]
        if self._spec.deepspeed_config:
            argv += ["--deepspeed-config", str(self._spec.deepspeed_config.resolve())]
        if warm := self._spec.warm_base:
            argv += ["--warm-base", warm.ref, warm.digest, warm.task]
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self._spec.num_ranks),
            "LOCAL_WORLD_SIZE": str(self._spec.num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log or sys.__stderr__,
            stderr=log,
            env=os.environ | environment,
            process_group=self._processes[0].pid if self._processes else 0,
        )

    def _last_words(self) -> str:
        if self._spec.log is None:
            return ""
        try:
            lines = self._spec.log.read_bytes()[-4096:].decode(errors="replace").splitlines()
        except OSError:
            return ""
        return f"; last line of {self._spec.log}: {lines[-1][:300]}" if lines else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
