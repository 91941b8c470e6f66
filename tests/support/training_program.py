"""Trains in children that kill themselves with SIGKILL at each write in turn, resumes what is left, and compares.

Prints at how many writes a run was killed. One process makes all children by forking: nothing here uses threads. The
curve is left out, because drawing takes longer than everything else.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from editors.training import run_folder as training_folder
from editors.training.loop import LoopSettings
from editors.training.run_folder import TrainingFolder
from tests.support.training_parts import train

SETTINGS = LoopSettings(num_steps=4, validate_every=2, save_every=1, patience=9)
KILLING = ("replace", "rename", "unlink", "rmdir")
"""Calls of `os` before which a child may die; what it wrote until then is there."""


def main(folder: Path) -> None:
    """See the module."""
    torch.set_num_threads(1)
    training_folder.TrainingFolder.draw = lambda self: None  # type: ignore[method-assign]
    train(folder / "whole", settings=SETTINGS)
    expected, num_killed = left_by(folder / "whole"), 0
    while is_killed(folder / f"killed-{num_killed}", at_write=num_killed):
        killed = folder / f"killed-{num_killed}"
        is_begun = (killed / "run.json").is_file()
        train(killed if is_begun else cleared(killed), resume=is_begun, settings=SETTINGS)
        assert left_by(killed) == expected, f"killed at write {num_killed}"
        num_killed += 1
    print(num_killed)


def is_killed(folder: Path, *, at_write: int) -> bool:
    """Train in a child that kills itself at a write; False if it came to its end before."""
    child = os.fork()
    if child == 0:
        Countdown(at_write).install()
        train(folder, settings=SETTINGS)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


class Countdown:
    """Kills this process at a call of `os` that changes a file."""

    def __init__(self, left: int) -> None:
        self.left = left

    def install(self) -> None:
        for name in KILLING:
            setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return call(*arguments, **keywords)

        return wrapper


def cleared(folder: Path) -> Path:
    """A folder that was killed before it was a run's."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def left_by(folder: Path) -> dict[str, Any]:
    """Everything that has to be the same bits, by file."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found: dict[str, Any] = {
        name: path.read_bytes() for name, path in files.items() if path.suffix not in (".png", ".jsonl")
    }
    lines = TrainingFolder(folder).logged()
    return found | {"log": [{key: value for key, value in line.items() if key != "seconds"} for line in lines]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
