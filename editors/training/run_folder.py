"""The folder of a training run, which a crash at any moment leaves usable.

    run.json            what the run is; a resume has to be of the same
    state.safetensors   the state between two steps, from which a resume goes on
    log.jsonl           one line for each step and each validation
    loss.png            the curve of the log
    held-out.jsonl      the edits to validate on, where they were taken from the run's data
    best/ last/         folders of the best editor and of the newest
    .lock               held by the process that writes the run; its number while it does

Whatever is newer than the state is made again by a resume.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from editors.data.atomic_files import recover_folder, replace_folder, write_atomically
from editors.mend.checkpoint import TrainedEditor
from editors.models.digest import names_base
from editors.training.state import TrainingState
from pipeline.domain.errors import IntegrityBroken, InvalidInput
from pipeline.domain.formats.canonical import canonical_json

BEST, LAST = "best", "last"
LOCK = ".lock"
"""Name of the file that whoever writes the run holds."""


class TrainingFolder:
    """The files of a run; `open_new` or `open_again` comes before everything else.

    A context manager: nobody else can write the run from then on until its end.

    Args:
        path: the folder; `open_new` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self.curve, self.held_out = path / "loss.png", path / "held-out.jsonl"
        self._run, self._state, self._log = path / "run.json", path / "state.safetensors", path / "log.jsonl"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()

    def refuse_taken(self) -> None:
        """Make sure that a new run may go here.

        Raises:
            InvalidInput: if something is here already.
        """
        if self.path.exists() and (not self.path.is_dir() or {path.name for path in self.path.iterdir()} - {LOCK}):
            hint = "; --resume goes on with it" if self._run.is_file() else ""
            raise InvalidInput(f"expected a new or empty folder for a training run, got {self.path}{hint}")

    def open_new(self, run: Mapping[str, Any]) -> None:
        """Make the folder and write down what the run is.

        Raises:
            InvalidInput: if something is here already, or somebody else begins a run here.
        """
        self.refuse_taken()
        self.path.mkdir(parents=True, exist_ok=True)
        self._hold()
        self.refuse_taken()
        write_atomically(self._run, (canonical_json(run) + "\n").encode())

    def open_again(self, run: Mapping[str, Any]) -> TrainingState | None:
        """Clean up after the end of a run and return its last state; None if it was stopped before its first.

        Raises:
            InvalidInput: if this is no folder of a run, it is of another run than `run`, or somebody else writes it.
            IntegrityBroken: if the state, the log or what the run is cannot be read.
        """
        if not self._run.is_file():
            raise InvalidInput(f"expected the folder of a training run to resume, got {self.path} without run.json")
        self._hold()
        _check_same(self.path, self.run, json.loads(canonical_json(run)))
        for name in (BEST, LAST):
            recover_folder(self.path / name)
        self._sweep()
        state = TrainingState.load(self._state) if self._state.is_file() else None
        self._cut_log(state.progress.step if state else -1)
        return state

    @property
    def run(self) -> dict[str, Any]:
        """What the run is, as it was written down when it began; IntegrityBroken if that cannot be read."""
        try:
            document = json.loads(self._run.read_bytes().decode())
        except ValueError as error:
            raise IntegrityBroken(f"expected a JSON object in {self._run}, got: {error}") from error
        if not isinstance(document, dict):
            raise IntegrityBroken(f"expected a JSON object in {self._run}, got {document!r:.80}")
        return document

    @property
    def hint(self) -> str:
        """How a run that was stopped goes on, as the end of a sentence; nothing for one that has not begun."""
        if not self._run.is_file():
            return ""
        return f"; --resume {'goes on from the last state' if self._state.is_file() else 'begins it again'}"

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
        """Return the lines of the log, without one that a crash has cut off.

        Raises:
            IntegrityBroken: if a line is whole and none that `log` has written.
        """
        if not self._log.is_file():
            return []
        lines = []
        for number, text in enumerate(self._log.read_bytes().split(b"\n"), start=1):
            try:
                line = json.loads(text.decode())
            except UnicodeDecodeError as error:
                raise IntegrityBroken(f"expected UTF-8 in line {number} of {self._log}, got: {error}") from error
            except ValueError:
                continue
            if not isinstance(line, dict) or type(line.get("step")) is not int:
                raise IntegrityBroken(f"expected a step in line {number} of {self._log}, got {line!r:.80}")
            lines.append(line)
        return lines

    def _hold(self) -> None:
        """Keep others from writing this run."""
        lock = (self.path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read() or "not known yet"
            lock.close()
            raise InvalidInput(f"expected a folder that no run writes to, got {self.path} (pid {holder})") from None
        self._lock = lock
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()

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
