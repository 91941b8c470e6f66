"""Logs of bounded size: what grew too long becomes `NAME.log.1`, and the process writes on at the start of its file;
and when each line of a log was written, in the form of whichever process wrote it.

Processes append to files that they hold open, so a log is copied and emptied, not renamed. What is written in the
moment between is lost.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path

MAX_BYTES = 10 << 20
NUM_KEPT = 2
# Ours as JSON or text and PostgreSQL's; MLflow's and Python's; Redis'. Where no zone stands, it is that of the machine.
_STAMP = re.compile(
    r'(?:^|"timestamp": ?")(?P<date>\d{4}[-/]\d\d[-/]\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?:[.,](?P<part>\d{1,6})\d*)?'
    r"(?P<zone>Z|[+-]\d\d:?\d\d| UTC)?"
)
_REDIS = re.compile(r"^\d+:\w (?P<at>\d\d \w{3} \d{4} \d\d:\d\d:\d\d\.\d{3})")


def bound(folder: Path, *, max_bytes: int = MAX_BYTES, num_kept: int = NUM_KEPT) -> list[str]:
    """Put aside logs that are longer than that; return their names.

    Args:
        folder: of the logs.
        max_bytes: how long a log may be.
        num_kept: how many older parts of each stay: `.1` is the newest.
    """
    rotated = []
    for log in folder.glob("*.log"):
        with suppress(OSError):  # a full disk, or a stack that is being removed: the next look tries again
            if log.stat().st_size > max_bytes:
                _put_aside(log, num_kept)
                rotated.append(log.stem)
    return rotated


def _put_aside(log: Path, num_kept: int) -> None:
    parts = [log.with_name(f"{log.name}.{number}") for number in range(1, num_kept + 1)]
    for newer, older in reversed(list(pairwise(parts))):
        if newer.exists():
            newer.replace(older)
    fresh = log.with_name(f".{log.name}.part")
    shutil.copy(log, fresh)  # with its mode
    fresh.replace(parts[0])
    with log.open("r+b") as stream:
        stream.truncate()


def written_at(line: str) -> float | None:
    """Return the time that a line says it was written at, in seconds since 1970; None if it says none."""
    try:
        if redis := _REDIS.match(line):
            return datetime.strptime(redis["at"], "%d %b %Y %H:%M:%S.%f").timestamp()
        if found := _STAMP.search(line):
            zone = {"Z": "+00:00", " UTC": "+00:00", None: ""}.get(found["zone"], found["zone"])
            part = (found["part"] or "0").ljust(6, "0")
            return datetime.fromisoformat(f"{found['date'].replace('/', '-')}T{found['time']}.{part}{zone}").timestamp()
    except ValueError:
        return None
    return None


def timed(lines: Sequence[str], *, otherwise: float) -> Iterator[tuple[float, str]]:
    """Yield each line of one log with a time that never goes back, so that several logs can be merged.

    A line that says none, as in a traceback, has that of the line before it; at the start, that of the first that does.

    Args:
        lines: of one log, in order.
        otherwise: the time of lines of which none says one, in seconds since 1970.
    """
    at = next((stamp for stamp in map(written_at, lines) if stamp is not None), otherwise)
    for line in lines:
        at = max(at, written_at(line) or at)
        yield at, line
