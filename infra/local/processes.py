"""Processes in sessions of their own: start one, tell it from any other, end it with what it started."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02
_RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    """Process id; also the id of the session that it leads."""
    birth: str
    """Boot id of the machine and clock ticks from boot to the start of the process."""


def launch(
    argv: Sequence[str], *, log: Path, env: Mapping[str, str], inherited: Mapping[str, str] | None = None
) -> ProcessId:
    """Start ``argv`` as leader of a new session with both outputs appended to ``log`` and no input.

    Args:
        argv: the program, as a path, and its arguments.
        log: file to append to.
        env: variables to add to those that are inherited.
        inherited: this process's own if None.

    Raises:
        OSError: the program or the log cannot be opened.
    """
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        argv[0],
        list(argv),
        {**(os.environ if inherited is None else inherited), **env},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=_RESET_SIGNALS,
    )
    return process_id(pid)


def process_id(pid: int) -> ProcessId:
    """Return what tells the process of that number from any other; of one that has ended, what no process has."""
    return ProcessId(pid=pid, birth=_birth(pid) or "ended")


def is_alive(process: ProcessId) -> bool:
    """Return whether this very process still runs; one that ended and was not waited for does not."""
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return _birth(process.pid) == process.birth


def end(process: ProcessId, *, first: signal.Signals, grace_seconds: float) -> None:
    """Ask the process to end, kills it after ``grace_seconds``, and kills what is left of its session."""
    if is_alive(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, first)
        if not _ended_within(process, grace_seconds):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            _ended_within(process, grace_seconds)
    for pid in _orphans(process):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ended_within(process: ProcessId, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _orphans(leader: ProcessId) -> Iterator[int]:
    # Linux gives a number to no new process while a session still bears it: unless somebody else has the leader's
    # number by now, or the machine was started anew, whoever is in the session of that number came from the leader.
    fields = _fields(leader.pid)
    if not leader.birth.startswith(_boot_id()) or (fields is not None and not leader.birth.endswith(f":{fields[19]}")):
        return
    for entry in os.listdir("/proc"):
        member = _fields(int(entry)) if entry.isdigit() else None
        if member is not None and int(member[3]) == leader.pid:
            yield int(entry)


def _birth(pid: int) -> str | None:
    fields = _fields(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return f"{_boot_id()}:{fields[19]}"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _fields(pid: int) -> list[str] | None:
    """Return the fields of ``stat`` in proc(5) from the third on: state, parent, group, session, …, start at [19]."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()
