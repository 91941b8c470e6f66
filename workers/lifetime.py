"""How a rank's process ends: with a reason that its controller can read. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from pydantic import TypeAdapter

from workers.commands import Failure, failure_of

RENDEZVOUS = "CORRIGENDA_RENDEZVOUS"
"""Environment variable with the path of the file through which the ranks of a group find each other. Nobody else may
read or write its folder; the ranks leave their last words beside it."""

_FAILURE = TypeAdapter(Failure)


def leave_last_words(folder: Path, rank: int, error: BaseException) -> None:
    """Write down why a rank is about to end, all of it or nothing; a disk that is full must not keep it from ending."""
    path = _words(folder, rank)
    with contextlib.suppress(OSError):
        begun = path.with_suffix(".part")
        begun.write_bytes(_FAILURE.dump_json(failure_of(error)))
        begun.replace(path)


def has_spoken(folder: Path, rank: int) -> bool:
    """Return whether a rank has left its last words, so that it is about to end if it has not ended yet."""
    return _words(folder, rank).exists()


def first_to_fail(folder: Path, statuses: dict[int, int]) -> tuple[int, Failure | None]:
    """Return the rank that made a group end, and what it said, if it said anything.

    The other ranks fail too, but only because they lost this one: so it is one that was killed, which says nothing, or
    else the first that spoke, or else one that ended without a word. Libraries abort where a peer is lost, so an abort
    is a cause only where nobody spoke.

    Args:
        folder: where the ranks leave their last words.
        statuses: exit status of each rank that has ended, negative for a signal.
    """
    rank = min(statuses, key=lambda rank: (not _is_killed(statuses[rank]), _spoken_at(folder, rank)))
    path = _words(folder, rank)
    return rank, _FAILURE.validate_json(path.read_bytes()) if path.exists() else None


def described(status: int) -> str:
    """Return an exit status as a person reads it: a signal with its name, and what sends it most often."""
    if status >= 0:
        return str(status)
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return str(status)
    hint = ", as the kernel sends it when memory runs out" if -status == signal.SIGKILL else ""
    return f"{status} ({name}{hint})"


def _is_killed(status: int) -> bool:
    return status < 0 and -status != signal.SIGABRT


def _spoken_at(folder: Path, rank: int) -> float:
    try:
        return _words(folder, rank).stat().st_mtime_ns
    except FileNotFoundError:
        return float("inf")


def _words(folder: Path, rank: int) -> Path:
    return folder / f"last-words-{rank}.json"
