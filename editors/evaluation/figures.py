"""Where the figures of an evaluation go: a folder, a file, or standard output at the end.

Figures of a run that is under way, or was cut off, lie where the complete ones will, unless complete ones of an
earlier run are there: these stay until the new ones are complete, which lie beside them as `figures.part.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editors.data.atomic_files import require_file, require_folder, write_atomically
from pipeline.domain.formats.canonical import finite

STANDARD_OUTPUT = "-"
"""What `--json` names to have the figures printed."""


class Figures:
    """The places that a command line names, which are tried at once.

    Args:
        out: folder for the figures and their picture; None for none.
        file: file for the figures, or `-`; None for none.

    Attributes:
        part: file with the figures of a run that is not complete, if they are in a file.

    Raises:
        Misconfigured: if a place cannot be written.
    """

    def __init__(self, out: Path | None, file: str | None) -> None:
        self._out, self._is_printed = out, file == STANDARD_OUTPUT
        self._files = [Path(file)] if file is not None and not self._is_printed else []
        self.part: Path | None = None
        for path in self._files:
            require_file(path, "--json")
        if out is not None:
            require_folder(out, "--out")
            self._files.append(out / "figures.json")

    def save(self, figures: Mapping[str, Any]) -> None:
        """Write figures that are not complete yet, into files only."""
        for path in self._files:
            self.part = path.with_name(f"{path.stem}.part{path.suffix}") if _is_complete(path) else path
            _put(self.part, _text(figures))

    def end(self, figures: Mapping[str, Any]) -> None:
        """Write the last figures of a run, complete or not, and print them if they are to be printed."""
        if self._is_printed:
            print(_text(figures), flush=True)
        if not figures["is_complete"]:
            self.save(figures)
            return
        for path in self._files:
            _put(path, _text(figures))
            path.with_name(f"{path.stem}.part{path.suffix}").unlink(missing_ok=True)
        self.part = None
        if self._out is not None:
            from editors.evaluation.curves import draw

            points = {name: found.get("checkpoints") or [found] for name, found in figures["solvers"].items()}
            draw(self._out / "curves.png", _title(figures), points, base=figures["base"] | {"drawdown": 0.0})


def _text(figures: Mapping[str, Any]) -> str:
    return json.dumps(finite(figures), indent=2, allow_nan=False)


def _is_complete(path: Path) -> bool:
    """Return whether a file holds all figures of a run."""
    if not path.is_file():
        return False
    try:
        figures = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(figures, dict) and figures.get("is_complete") is True


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a pipe or a terminal: nothing takes its place
        path.write_text(f"{text}\n", encoding="utf-8")
    else:
        write_atomically(path.resolve(), f"{text}\n".encode())


def _title(figures: Mapping[str, Any]) -> str:
    inputs, protocol = figures["inputs"], figures["protocol"]
    how = "one at a time" if protocol["kind"] == "single" else f"in batches of {protocol['batch']}"
    return f"{inputs['edits']:,} edits {how}: {Path(inputs['data']).name} on {Path(inputs['model']).name}"
