"""Train an editor: `python -m editors.training --help`. No service has to run.

The run's folder holds everything that the run needs to go on after a kill (see `run_folder`). The same command with
`--resume` then gives the bytes of a run that nothing stopped.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import transformers

from editors.data.atomic_files import require_file, require_folder, write_atomically
from editors.data.datasets import edit_lines
from editors.mend.checkpoint import TrainedEditor
from editors.models.comm import ALONE, Comm, agreed
from editors.training.arguments import loop_settings, parsed, run_of
from editors.training.loop import TrainingRun
from editors.training.progress import TrainingScreen
from editors.training.run_folder import BEST, TrainingFolder
from editors.training.setup import LoadBase, Say, Setup, prepare, set_up
from editors.training.state import Progress, TrainingState
from editors.weights.loading import load_base
from pipeline.domain.errors import CorrigendaError, Misconfigured
from pipeline.domain.formats.refusals import INTERRUPTED, refused_in_a_sentence

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of the system for a file that there is no room for."""
EVALUATED = 64
"""Most edits in the evaluation that is proposed as the next command."""


def train(
    given: argparse.Namespace, command: str, *, load: LoadBase = load_base, comm: Comm | None = None
) -> list[str]:
    """Train from the beginning, or go on with a run.

    Args:
        given: the command line.
        command: the command as it was typed.
        load: loads the base.
        comm: the ranks that hold the base together. All of them train; the first one keeps and shows the run. None for
            a process that holds the base whole.

    Returns:
        What the run came to, in lines to print; none on ranks other than the first.

    Raises:
        CorrigendaError: if an input cannot be used, or the folder holds another run.
        OSError: if a file cannot be written.
    """
    if given.threads:
        torch.set_num_threads(given.threads)
    versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
    _require_places(given)
    run = run_of(given, command, versions, comm.num_ranks if comm else None)
    if given.only_prepare:
        return [prepare(given, run, _say, load)]
    with TrainingFolder(given.out) as folder:
        return _trained(given, run, folder, load, comm or ALONE)


def _require_places(given: argparse.Namespace) -> None:
    """Make sure before anything is loaded that what the run will write has a place."""
    if not given.only_prepare:
        require_folder(given.out, "--out")
    if given.prepared is not None and not given.prepared.exists():
        require_file(given.prepared, "--prepared")


def _trained(
    given: argparse.Namespace, run: dict[str, Any], folder: TrainingFolder, load: LoadBase, comm: Comm
) -> list[str]:
    """Train in a folder, and return what the run came to."""
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
        return []
    start = state.progress.step if state else 0
    with TrainingScreen(num_steps=settings.num_steps, start=start) as screen:
        progress = run_with(folder=folder, watcher=screen).run(state)
    return _finished(given, folder, setup, progress)


def _opened(
    folder: TrainingFolder, run: dict[str, Any], *, resume: bool
) -> tuple[TrainingState | None, dict[str, Any]]:
    """Return the state to go on from, if there is one, and what the run in the folder is."""
    if resume:
        state = folder.open_again(run)
        return state, folder.run
    folder.refuse_taken()
    return None, run


def _finished(given: argparse.Namespace, folder: TrainingFolder, setup: Setup, done: Progress) -> list[str]:
    """Return what is printed at the end; its last line is the command to type next, an evaluation of the editor."""
    best = folder.path / BEST
    data = given.validation or folder.held_out
    words = ["corrigenda", "evaluate", "--data", data, "--edits", min(len(setup.held_out), EVALUATED)]
    words += ["--model", given.model, "--task", given.task, "--editor", best]
    shown = "  ".join(f"{name} {value:.4g}" for name, value in (done.best_figures or {}).items())
    return [
        f"editor      {best}",
        f"digest      {TrainedEditor.load(best).digest}",
        f"steps       {done.step} on {done.num_edits} edits, {done.num_skipped} skipped; best: {done.best_step}",
        f"validation  {shown}",
        f"next        {shlex.join(str(word) for word in words)}",
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refused(error: Exception, given: argparse.Namespace | None) -> str:
    """Return one sentence about what stopped the run."""
    if given is not None and isinstance(error, OSError) and error.errno in FULL:
        return f"expected room for the run in {given.out}, got: {error.strerror}{_hint(given)}"
    return " ".join(str(error).split())


def stopped(given: argparse.Namespace | None) -> str:
    """Return what is said of a run that was interrupted; None for one whose command line was not read yet."""
    return f"stopped{_hint(given)}"


def _hint(given: argparse.Namespace | None) -> str:
    """Return how the run goes on that was stopped, as the end of a sentence; nothing where there is none yet."""
    return "" if given is None or given.only_prepare else TrainingFolder(given.out).hint


def _say_nothing(line: str) -> None:
    """Show nothing, as ranks other than the first do."""


def main(
    arguments: Sequence[str] | None = None,
    *,
    options: Sequence[str] = (),
    load: LoadBase = load_base,
    comm: Comm | None = None,
    say: Say | None = None,
) -> int:
    """Run the program; when something cannot be used, it says so in one sentence and returns 1.

    Args:
        arguments: the command line; None for that of the process.
        options: what else was typed before it, for the editor's card.
        load: loads the base.
        comm: the ranks that hold the base together; None for a process that holds it whole.
        say: shows what cannot be used; None for standard error.
    """
    say = say or _say
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["corrigenda", "train", *options, *(word for word in words if word != "--resume")])
    given = None
    try:
        with refused_in_a_sentence():
            given = parsed(words)
        if given.device and load is load_base:
            load = partial(load_base, device=given.device)
        elif given.device:
            raise Misconfigured("expected --device for one process, got it with ranks, which each have their own")
        lines = train(given, command, load=load, comm=comm)
    except KeyboardInterrupt:
        say(stopped(given))
        return INTERRUPTED
    except (CorrigendaError, OSError) as error:
        say(_refused(error, given))
        return 1
    if lines:
        print("\n".join(lines), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
