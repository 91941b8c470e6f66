"""The folder of a training run, which a crash at any moment leaves usable.

    run.json            what the run is; a resume has to be of the same
    state.safetensors   the state between two steps, from which a resume goes on
    log.jsonl           one line for each step and each validation
    loss.png            the curve of the log
    held-out.jsonl      the edits to validate on, where they were taken from the run's data
    best/ last/         folders of the best editor and of the newest

Whatever is newer than the state is made again by a resume.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editors.data.atomic_files import recover_folder, replace_folder, write_atomically
from editors.mend.checkpoint import TrainedEditor
from editors.models.digest import names_base
from editors.training.state import TrainingState
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.canonical import canonical_json

BEST, LAST = "best", "last"


class TrainingFolder:
    """The files of a run; `open_new` or `open_again` comes before everything else.

    Args:
        path: the folder; `open_new` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curve, self.held_out = path / "loss.png", path / "held-out.jsonl"
        self._run, self._state, self._log = path / "run.json", path / "state.safetensors", path / "log.jsonl"

    def refuse_taken(self) -> None:
        """Make sure that a new run may go here.

        Raises:
            InvalidInput: if something is here already.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            hint = "; --resume goes on with it" if self._run.is_file() else ""
            raise InvalidInput(f"expected a new or empty folder for a training run, got {self.path}{hint}")

    def open_new(self, run: Mapping[str, Any]) -> None:
        """Make the folder and write down what the run is."""
        self.refuse_taken()
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._run, (canonical_json(run) + "\n").encode())

    def open_again(self, run: Mapping[str, Any]) -> TrainingState | None:
        """Clean up after the end of a run and return its last state; None if it was stopped before its first.

        Raises:
            InvalidInput: if this is no folder of a run, or it is of another run than `run`.
            IntegrityBroken: if the state cannot be read.
        """
        if not self._run.is_file():
            raise InvalidInput(f"expected the folder of a training run to resume, got {self.path} without run.json")
        _check_same(self.path, json.loads(self._run.read_text(encoding="utf-8")), json.loads(canonical_json(run)))
        for name in (BEST, LAST):
            recover_folder(self.path / name)
        self._sweep()
        state = TrainingState.load(self._state) if self._state.is_file() else None
        self._cut_log(state.progress.step if state else -1)
        return state

    @property
    def run(self) -> dict[str, Any]:
        """What the run is, as it was written down when it began."""
        document: dict[str, Any] = json.loads(self._run.read_text(encoding="utf-8"))
        return document

    def save_state(self, state: TrainingState) -> None:
        """Replace the state; a reader sees the old one or the new one."""
        state.save(self._state)

    def save_editor(self, name: str, editor: TrainedEditor) -> None:
        """Replace the editor `best` or `last`."""
        new = self.path / f".{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        editor.save(new)
        replace_folder(new, self.path / name)

    def draw(self) -> None:
        """Draw the curve of what is in the log; a bare machine without matplotlib gets none."""
        try:
            from editors.training.curve import draw_curve
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            return
        draw_curve(self.curve, self.logged())

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the log, as JSON."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def logged(self) -> list[dict[str, Any]]:
        """Return the lines of the log, without one that a crash has cut off."""
        if not self._log.is_file():
            return []
        lines = []
        for text in self._log.read_text(encoding="utf-8").split("\n"):
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines

    def _sweep(self) -> None:
        """Remove what a crash left half written beside its place."""
        for name in (BEST, LAST, self.curve.name, self.held_out.name, self._run.name, self._state.name, self._log.name):
            for path in self.path.glob(f".{name}.*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _cut_log(self, step: int) -> None:
        """Remove the steps after the state from the log: they are made again."""
        kept = [json.dumps(line) + "\n" for line in self.logged() if line["step"] <= step]
        write_atomically(self._log, "".join(kept).encode())


def _check_same(path: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted({*was, *now} - {"command", "versions"}):
        old, new = was.get(name), now.get(name)
        if old == new or (name == "base_digest" and names_base(str(old), new or "")):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            # What a run of before could not be told is the same where it is off now.
            differing = [
                key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and (key in old or new[key])
            ]
            if not differing:
                continue
            inner = differing[0]
            name, old, new = f"{name}.{inner}", old.get(inner), new.get(inner)
        raise InvalidInput(f"expected the run in {path} to be resumed with its own {name}, {old!r}, got {new!r}")
