"""Logs of bounded size: what grew too long becomes `NAME.log.1`, and the process writes on at the start of its file.

Processes append to files that they hold open, so a log is copied and emptied, not renamed. What is written in the
moment between is lost.
"""

import shutil
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

MAX_BYTES = 10 << 20
NUM_KEPT = 2


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
