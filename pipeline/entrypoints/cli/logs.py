"""The command that shows what the processes of the embedded stack have written."""

from __future__ import annotations

import heapq
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.local.log_files import timed
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.entrypoints.console import exits_clearly, out, visible
from pipeline.entrypoints.local_settings import load_settings

POLL_SECONDS = 0.5
TAIL_BYTES = 1 << 20
"""How much of a log's end is looked at for its last lines."""


def add_commands(app: typer.Typer) -> None:
    """Register the command of this file."""
    app.command()(exits_clearly(logs))


def logs(
    process: Annotated[
        list[str] | None,
        typer.Argument(help="Names, or how they begin, such as intake or edit-worker; all if left out."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines of each log.")] = 20,
    raw: Annotated[bool, typer.Option("--raw", help="Print lines as they are written, JSON as JSON.")] = False,
    home: Annotated[Path | None, typer.Option("--home", help="Folder of the stack.")] = None,
) -> None:
    """Show the last lines of the logs of services and processes of the embedded stack, merged by time.

    Example: corrigenda logs intake control-worker --follow
    """
    files = _chosen((home or load_settings().home) / "logs", process or [])
    width = max(len(file.stem) for file in files)
    ends = {file: file.stat().st_size for file in files}  # what is written from here on is shown by --follow
    last = ((file, _last_lines(file, lines, end=end)) for file, end in ends.items())
    for name, line in itertools.chain(_merged(last), _following(ends) if follow else ()):
        _print(name, line, width=width, is_raw=raw, is_one=len(files) == 1)


def _chosen(folder: Path, names: Sequence[str]) -> list[Path]:
    known = sorted(folder.glob("*.log")) if folder.is_dir() else []
    if not known:
        raise Misconfigured(f"expected logs in {folder}, got none; `corrigenda up` starts what writes them")
    for name in names:
        if not any(file.stem.startswith(name) for file in known):
            listed = ", ".join(file.stem for file in known)
            raise InvalidInput(f"expected the name of a process, one of {listed}; got {name!r:.80}")
    return [file for file in known if not names or file.stem.startswith(tuple(names))]


def _last_lines(file: Path, number: int, *, end: int) -> list[str]:
    with file.open("rb") as stream:
        start = stream.seek(max(end - TAIL_BYTES, 0))
        text = stream.read(end - start).decode("utf-8", "replace")
    return list(deque(text.splitlines(), maxlen=number))


def _merged(logs: Iterable[tuple[Path, Sequence[str]]]) -> Iterator[tuple[str, str]]:
    """Yield the lines of several logs by the time at which each was written, with the name of its process."""
    timed_lines = [
        [(at, file.stem, line) for at, line in timed(lines, otherwise=_changed_at(file))] for file, lines in logs
    ]
    for _, name, line in heapq.merge(*timed_lines, key=lambda one: one[0]):
        yield name, line


def _changed_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return time.time()


def _following(ends: Mapping[Path, int]) -> Iterator[tuple[str, str]]:
    """Yield lines as they come, merged as far as one look finds them; a log that was rotated is read from its start."""
    places, rests = dict(ends), dict.fromkeys(ends, b"")
    while True:
        sys.stdout.flush()
        time.sleep(POLL_SECONDS)
        found: list[tuple[Path, Sequence[str]]] = []
        for file in ends:
            size = file.stat().st_size if file.exists() else 0
            place = places[file] if size >= places[file] else 0
            if size == place:
                places[file] = place
                continue
            with file.open("rb") as stream:
                stream.seek(place)
                read = rests[file] + stream.read(size - place)
            *whole, rests[file] = read.split(b"\n")
            places[file] = size
            found.append((file, [line.decode("utf-8", "replace") for line in whole]))
        yield from _merged(found)


def _print(name: str, line: str, *, width: int, is_raw: bool, is_one: bool) -> None:
    told = line if is_raw else _told(line)
    prefix = "" if is_one or is_raw else f"{name:<{width}}  "
    out.print(prefix + visible(told), markup=False, soft_wrap=True)


def _told(line: str) -> str:
    """Return an event of ours as a sentence; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        event: Any = json.loads(line)
    except ValueError:
        return line
    if not isinstance(event, dict) or "event" not in event:
        return line
    said = {key: value for key, value in event.items() if key not in ("event", "level", "timestamp")}
    more = "  ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in said.items())
    return f"{_time(event.get('timestamp'))}{event.get('level', ''):<8}{event['event']}  {more}".rstrip()


def _time(stamp: Any) -> str:
    try:
        return f"{datetime.fromisoformat(stamp).astimezone():%H:%M:%S} "
    except (TypeError, ValueError):
        return ""
