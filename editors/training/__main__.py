"""Trains an editor: `python -m editors.training --help`. Needs no service.

The run's folder holds everything that it needs to go on after a kill (see `training_folder`); the same command with
`--resume` then gives the bytes of a run that nothing stopped.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from editors.data.atomic_files import write_atomically
from editors.data.datasets import edit_lines
from editors.mend.checkpoint import TrainedEditor
from editors.models.comm import ALONE, Comm, agreed
from editors.training.arguments import loop_settings, parsed, run_of
from editors.training.loop import TrainingRun
from editors.training.progress import TrainingScreen
from editors.training.run_folder import BEST, TrainingFolder
from editors.training.setup import LoadBase, Say, Setup, set_up
from editors.training.state import Progress, TrainingState
from editors.weights.loading import load_base
from pipeline.domain.errors import CorrigendaError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for a file."""
INTERRUPTED = 130
EVALUATED = 64
"""Most edits of the command that is proposed next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A run that came to its end."""

    folder: Path
    """Of the best editor."""
    editor: TrainedEditor
    """It."""
    progress: Progress
    """Of the run."""
    following: str
    """The next command to type."""

    def lines(self) -> list[str]:
        """What a person wants to know."""
        done, figures = self.progress, self.progress.best_figures or {}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        return [
            f"editor      {self.folder}",
            f"digest      {self.editor.digest}",
            f"steps       {done.step} on {done.num_edits} edits, {done.num_skipped} skipped; best: {done.best_step}",
            f"validation  {shown}",
            f"next        {self.following}",
        ]


def train(
    given: argparse.Namespace, command: str, *, load: LoadBase = load_base, comm: Comm | None = None
) -> Finished | None:
    """Train from the beginning, or go on.

    Args:
        given: the command line.
        command: as it was typed.
        load: gives the base.
        comm: the ranks that hold it together, which all train while the first one keeps and shows; None for a process
            that holds it whole.

    Returns:
        What came of it; None on the other ranks.

    Raises:
        CorrigendaError: if an input cannot be used, or the run in the folder is another.
        OSError: if a file cannot be written.
    """
    if given.threads:
        torch.set_num_threads(given.threads)
    versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
    folder, run = TrainingFolder(given.out), run_of(given, command, versions, comm.num_ranks if comm else None)
    comm = comm or ALONE
    is_first = comm.rank == 0
    opened = agreed(comm, lambda: _opened(folder, run, resume=given.resume) if is_first else (None, run))
    state, run = comm.gathered(opened)[0]
    setup = set_up(given, run, _say if is_first else _say_nothing, load)
    if is_first and not given.resume:
        folder.open_new(run)
    if is_first and not given.validation and not folder.held_out.exists():
        write_atomically(folder.held_out, edit_lines(setup.held_out))
    settings = loop_settings(given)
    run_with = partial(TrainingRun, setup.objective, settings, make_editor=setup.editor, comm=comm)
    if not is_first:
        run_with(folder=None, watcher=None).run(state)
        return None
    start = state.progress.step if state else 0
    with TrainingScreen(num_steps=settings.num_steps, start=start) as screen:
        progress = run_with(folder=folder, watcher=screen).run(state)
    return _finished(given, folder, setup, progress)


def _opened(
    folder: TrainingFolder, run: dict[str, Any], *, resume: bool
) -> tuple[TrainingState | None, dict[str, Any]]:
    """The state to go on from, if there is one, and what the run in the folder is."""
    if resume:
        state = folder.open_again(run)
        return state, folder.run
    folder.refuse_taken()
    return None, run


def _finished(given: argparse.Namespace, folder: TrainingFolder, setup: Setup, progress: Progress) -> Finished:
    best = folder.path / BEST
    data = given.validation or folder.held_out
    words = ["corrigenda", "evaluate", "--data", data, "--edits", min(len(setup.held_out), EVALUATED)]
    words += ["--model", given.model, "--task", given.task, "--editor", best]
    following = shlex.join(str(word) for word in words)
    return Finished(folder=best, editor=TrainedEditor.load(best), progress=progress, following=following)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refused(error: Exception, out: Path | None) -> str:
    """One sentence."""
    if isinstance(error, OSError) and error.errno in FULL:
        return f"expected room for the run in {out}, got: {error.strerror}; with room, --resume goes on with it"
    return " ".join(str(error).split())


def _say_nothing(line: str) -> None:
    """What ranks other than the first show."""


def main(
    arguments: Sequence[str] | None = None,
    *,
    options: Sequence[str] = (),
    load: LoadBase = load_base,
    comm: Comm | None = None,
    say: Say | None = None,
) -> int:
    """Train; one sentence on standard error and exit status 1 when something cannot be used.

    Args:
        arguments: the command line; that of the process if None.
        options: what else was typed, for the card.
        load: see `train`.
        comm: see `train`.
        say: tells what cannot be used; on standard error if None.
    """
    say = say or _say
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["corrigenda", "train", *options, *(word for word in words if word != "--resume")])
    given = None
    try:
        given = parsed(words)
        finished = train(given, command, load=load, comm=comm)
    except KeyboardInterrupt:
        say("stopped; --resume goes on from the last state")
        return INTERRUPTED
    except (CorrigendaError, OSError) as error:
        say(_refused(error, given.out if given else None))
        return 1
    if finished is not None:
        print("\n".join(finished.lines()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
