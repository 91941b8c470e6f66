"""How the processes of the embedded stack are, asked at the ports that they have written into files."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

ANSWER_WITHIN = timedelta(seconds=5)
SILENT_FOR = timedelta(minutes=2)
"""A process that answers nothing at all for so long is stuck, however busy the machine may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Liveness:
    """What a process says of itself."""

    is_answering: bool
    """Whether anything answered."""
    failing: dict[str, str]
    """What is wrong, by name; empty where all is well."""


def health_file(home: Path, name: str) -> Path:
    """Return the file in which a process of the stack says where it answers."""
    return home / "health" / f"{name}.json"


def asked(home: Path, name: str, path: str = "/livez") -> Liveness | None:
    """Ask a process how it is; None of one that does not say where it answers, such as one that is starting."""
    address = _address(health_file(home, name))
    if address is None:
        return None
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=ANSWER_WITHIN.total_seconds()) as answer:
            answer.read()
        return Liveness(is_answering=True, failing={})
    except urllib.error.HTTPError as error:
        with error:
            return Liveness(is_answering=True, failing=_failing(error.read()))
    except OSError as error:
        return Liveness(is_answering=False, failing={"answer": str(getattr(error, "reason", error))})


class StuckProcesses:
    """Tells which processes make no progress although they run.

    One that says so itself is stuck at once; one that does not answer is stuck when that lasts.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._silent_since: dict[str, float] = {}

    def reason(self, name: str) -> str | None:
        """Return why a process counts as stuck; None if it does not."""
        found, now = asked(self._home, name), time.monotonic()
        if found is None or not found.failing:
            self._silent_since.pop(name, None)
            return None
        told = "; ".join(f"{part}: {why}" for part, why in sorted(found.failing.items()))
        if found.is_answering:
            return told
        is_long = now - self._silent_since.setdefault(name, now) > SILENT_FOR.total_seconds()
        return told if is_long else None


def _address(file: Path) -> str | None:
    """Return where a process answers, if the one that wrote that down still runs."""
    try:
        [entry] = json.loads(file.read_text())
        os.kill(int(entry["labels"]["__meta_pid"]), 0)
        return str(entry["targets"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _failing(body: bytes) -> dict[str, str]:
    try:
        found = json.loads(body)["failing"]
        return {str(name): str(why) for name, why in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"answer": "503"}
