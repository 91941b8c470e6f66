"""The processes of one group: started, watched, tied to this process's life, and ended.

The parent-death signal of Linux comes when the *thread* that started a child ends. So one thread starts the ranks and
stays until all of them have ended. Meanwhile it watches them: it ends them all when one fails or a command takes too
long, so that whoever waits for an answer sees the connection close.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import IO

from pipeline.computing import computing_environment
from pipeline.domain.errors import CorrigendaError, EngineFailed
from pipeline.domain.rank_api import BaseSpec
from pipeline.domain.scratch import scratch_folder
from workers.lifetime import RENDEZVOUS, described, first_to_fail, has_spoken
from workers.protocol import HELLOS, receive, send

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.1
"""How often the ranks are looked at."""
SHUTDOWN_SECONDS = 5.0
"""How long ranks that were asked to end may take before they are killed."""
LAST_WORDS_SECONDS = 60.0
"""How long a rank that has closed its connection, or has ended, may take to be seen to have ended. What it said before
is what the user gets, so a busy machine must not cut it short."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSpec:
    """What the processes of a group are started with."""

    num_ranks: int = 1
    """Processes in the group."""
    deepspeed_config: Path | None = None
    """DeepSpeed JSON; None for the one that is shipped."""
    warm_base: BaseSpec | None = None
    """Base to load before the first command asks for it."""
    log: Path | None = None
    """File that all ranks append to; None for this process's standard error."""
    program: tuple[str, ...] = (sys.executable, "-m", "workers.rank")
    """Command line that each rank runs."""


class RankProcesses:
    """One generation of ranks: started, asked, killed; never started again.

    Rank 0 inherits one end of a socket pair, which has no name: nobody else can connect to it.

    Args:
        spec: what to start.
    """

    def __init__(self, spec: RankSpec) -> None:
        self._spec = spec
        self._folder = scratch_folder("ranks")
        self._connection, self._end_of_rank = Pipe()
        self._is_greeted = False
        self._limit: _Limit | None = None
        self._failure: CorrigendaError | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started, self._failed = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._start_and_stay, name="ranks", daemon=True)
        self._keeper.start()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids by rank; empty until they are started."""
        return tuple(process.pid for process in self._processes)

    def failure(self, *, within: float = 0.0) -> CorrigendaError | None:
        """Return what is wrong with the processes, if something is.

        Args:
            within: seconds to wait for something; a rank that has closed its connection is about to end.
        """
        if any(process.poll() is not None for process in self._processes):
            within = max(within, LAST_WORDS_SECONDS)  # the keeper is about to see it too
        self._failed.wait(within)
        return self._failure

    def ask(self, request: bytes, *, what: str, seconds: float, is_answer: Callable[[bytes], bool]) -> None:
        """Send rank 0 a request and read what it says until that is the answer.

        Args:
            request: JSON of the request.
            what: what it asks for, for errors.
            seconds: limit for the answer, and for the start of the ranks where this is their first request. It begins
                anew with each step that is told, and time in which the ranks were waiting for a processor does not
                count.
            is_answer: takes each message, and says whether it is the answer; those before it tell of steps.

        Raises:
            EngineFailed: if a rank has ended, does not answer in time, or is of another version of the protocol.
            CorrigendaError: what a rank said before it ended.
        """
        if failure := self.failure():
            raise failure
        self._limit = _Limit(what, seconds)
        try:
            if not self._is_greeted:
                self._check(self._received())
            with contextlib.suppress(OSError):  # a rank that is gone has said why, or is found to be gone below
                send(self._connection, request)
            while not is_answer(self._received()):
                # How long all steps take depends on how much there is to do; ranks that hang tell no other.
                self._limit = _Limit(f"{what} or another step of it", seconds)
        finally:
            self._limit = None

    def end(self, request: bytes) -> None:
        """Send the request to end, and give the ranks a moment to do so; `kill` ends those that have not."""
        if self._is_greeted:
            with contextlib.suppress(OSError):
                send(self._connection, request)
            self._keeper.join(SHUTDOWN_SECONDS)

    def kill(self) -> None:
        """End every process with SIGKILL and wait for it. May be called again."""
        self._started.wait()
        self._kill_all()
        self._keeper.join()
        self._connection.close()
        self._folder.cleanup()

    def _received(self) -> bytes:
        body = receive(self._connection)
        if body is None:
            raise self.failure(within=LAST_WORDS_SECONDS) or EngineFailed("expected an answer, got a closed connection")
        return body

    def _check(self, body: bytes) -> None:
        hello = HELLOS.decode(body)
        if hello.world_size != self._spec.num_ranks:
            raise EngineFailed(f"expected rank 0 of {self._spec.num_ranks} to say hello, got {hello}")
        self._is_greeted = True

    def _start_and_stay(self) -> None:
        try:
            with contextlib.ExitStack() as files:
                log = files.enter_context(self._spec.log.open("ab")) if self._spec.log else None
                for rank in range(self._spec.num_ranks):
                    self._processes.append(self._start(rank, log=log))
        except OSError as error:
            self._fail(EngineFailed(f"expected the ranks to start, got: {error}"))
        finally:
            self._end_of_rank.close()  # so that the connection closes when rank 0 ends
            self._started.set()
        while any(process.poll() is None for process in self._processes):
            time.sleep(POLL_SECONDS)
            self._look()
        self._fail(self._cause())

    def _look(self) -> None:
        """End all ranks if one has failed, or if the command that runs has reached its limit."""
        if any(process.poll() for process in self._processes):
            self._fail(self._cause())
        elif (limit := self._limit) is not None and (failure := limit.exceeded(self.pids)) and limit is self._limit:
            self._fail(failure)

    def _fail(self, failure: CorrigendaError) -> None:
        if self._failure is None:
            self._failure = failure
        self._failed.set()
        self._kill_all()

    def _kill_all(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    os.killpg(self._processes[0].pid, signal.SIGKILL)

    def _cause(self) -> CorrigendaError:
        """Say why the ranks have ended, in the words of the one that failed first where it said something."""
        self._await_those_that_spoke()
        statuses = {rank: status for rank, process in enumerate(self._processes) if (status := process.poll())}
        if not statuses:
            return EngineFailed("expected living ranks, got ranks that have ended")
        rank, said = first_to_fail(Path(self._folder.name), statuses)
        if said is not None and said.error != EngineFailed.__name__:
            return said.as_error()
        ended = f"rank {rank} (pid {self._processes[rank].pid}) ended with status {described(statuses[rank])}"
        words = f": {said.message}" if said else self._last_line()
        return EngineFailed(f"expected living ranks, got: {ended}{words}")

    def _await_those_that_spoke(self) -> None:
        """Wait until ranks that have said why they end have ended: one that lost them may be seen to end before."""
        folder, until = Path(self._folder.name), time.monotonic() + SHUTDOWN_SECONDS
        while time.monotonic() < until and any(
            process.poll() is None and has_spoken(folder, rank) for rank, process in enumerate(self._processes)
        ):
            time.sleep(POLL_SECONDS)

    def _last_line(self) -> str:
        if self._spec.log is None:
            return ""
        try:
            lines = self._spec.log.read_bytes()[-4096:].decode(errors="replace").splitlines()
        except OSError:
            return ""
        return f"; last line of {self._spec.log}: {lines[-1][:300]}" if lines else ""

    def _start(self, rank: int, *, log: IO[bytes] | None) -> subprocess.Popen[bytes]:
        argv = [*self._spec.program, "--parent", str(os.getpid())]
        inherited = (self._end_of_rank.fileno(),) if rank == 0 else ()
        if rank == 0:
            argv += ["--connection", str(self._end_of_rank.fileno())]
        if self._spec.deepspeed_config:
            argv += ["--deepspeed-config", str(self._spec.deepspeed_config.resolve())]
        if warm := self._spec.warm_base:
            argv += ["--warm-base", warm.ref, warm.digest, warm.task]
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self._spec.num_ranks),
            "LOCAL_WORLD_SIZE": str(self._spec.num_ranks),
            RENDEZVOUS: str(Path(self._folder.name) / "rendezvous"),
            "TMPDIR": self._folder.name,  # what a rank that is killed leaves goes with the group
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log or sys.__stderr__,
            stderr=log,
            env=_threads(self._spec.num_ranks) | computing_environment() | environment,
            pass_fds=inherited,
            process_group=self._processes[0].pid if self._processes else 0,
        )


def _threads(num_ranks: int) -> dict[str, str]:
    """Return how a rank computes on its cores, unless the environment says otherwise.

    A rank by itself uses all cores, several share them. That threads sleep while they wait is in the environment of all
    that computes: those that spin took seven times the processor's time, and as long, once anything else ran on two
    cores.
    """
    return {"OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // num_ranks, 1))} if num_ranks > 1 else {}


class _Limit:
    """The time that a request, or a step of it, may take. Time in which the ranks wait for a processor does not count.

    Args:
        what: the request, for the error.
        seconds: most time.
    """

    def __init__(self, what: str, seconds: float) -> None:
        self._what, self._seconds = what, seconds
        self._spent, self._then = 0.0, time.monotonic()
        self._waited: dict[tuple[int, int], float] = {}

    def exceeded(self, pids: Sequence[int]) -> EngineFailed | None:
        """Return the error once the time is up; ask often."""
        now = time.monotonic()
        waited = {(pid, thread): spent for pid in pids for thread, spent in _waited_for_processor(pid).items()}
        starved = max((spent - self._waited.get(thread, spent) for thread, spent in waited.items()), default=0.0)
        self._spent += max(0.0, now - self._then - starved)
        self._then, self._waited = now, waited
        if self._spent <= self._seconds:
            return None
        return EngineFailed(f"expected an answer to {self._what} within {self._seconds:.0f} s, got none")


def _waited_for_processor(pid: int) -> dict[int, float]:
    """Return for how many seconds each thread of a process could run but had no processor; none where no kernel says.

    The main thread alone would not tell: it sleeps while others read a base or multiply for it.
    """
    found: dict[int, float] = {}
    with contextlib.suppress(OSError):  # the process has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                told = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text(encoding="ascii")
                found[int(thread)] = int(told.split()[1]) / 1e9
    return found
