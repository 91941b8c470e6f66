"""The command that trains an editor on edits of a file, without any service. Trains nothing itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.entrypoints.console import INTERRUPTED, ExitCode, exits_clearly

SIGNALLED = 128
"""What the launcher of ranks adds to the number of the signal that ended one of them."""


def add_commands(app: typer.Typer) -> None:
    """Register the command of this file."""
    passes_on = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(context_settings=passes_on)(exits_clearly(train))


def train(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Edits to learn from: our JSONL, CounterFact, zsRE, EasyEdit.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; new or empty without --resume.")],
    model: Annotated[Path | None, typer.Option(help="Folder of the base; the embedded SmolLM2 if left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    validation: Annotated[
        Path | None, typer.Option(help="Edits to validate on; the last of --data if left out.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Plain text that has to stay, also for the prior.")] = None,
    task: Annotated[
        str | None, typer.Option(help="causal, seq2seq or classifier; what the base declares if left out.")
    ] = None,
    solver: Annotated[
        Literal["recursive", "sum"], typer.Option(help="What makes weights of shifts: our solve, or MEND's sum.")
    ] = "recursive",
    rank: Annotated[int, typer.Option(min=1, help="Of the network.")] = 256,
    steps: Annotated[int | None, typer.Option(min=1, help="Most steps.")] = None,
    edits_per_step: Annotated[int | None, typer.Option(min=1, help="Edits of a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's, of the network.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Validations without a better score that end the run.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many of --data from the top.")] = None,
    seed: Annotated[int, typer.Option(help="Of the data's order and whatever is drawn.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.")] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Processes that hold the base together, sharded by DeepSpeed.")
    ] = None,
) -> None:
    """Train MEND's transform for a base into an editor directory, OUT/best; needs no service.

    Without --ranks one process holds the base whole, on the CPU; with it each rank has its part, on a device of its own
    where there are any (--deepspeed-config FILE instead of infra/deepspeed/zero3.json).

    A run that was stopped goes on with --resume, to the same bytes. Every constant of the objective is an option too,
    and the weights are (--inner-param, --subject-param): see `python -m editors.training --help`.

    Example: corrigenda train --data facts.jsonl --out trained --steps 400
    """
    from infra.local.base_model import ensure_base_model

    for path in (data, validation, text):
        if path is not None and not path.is_file():
            raise InvalidInput(f"expected a file, got {path}, which is none")
    options = {
        "data": data,
        "model": model or ensure_base_model(),
        "out": out,
        "validation": validation,
        "text": text,
        "task": task,
        "solver": solver,
        "rank": rank,
        "steps": steps,
        "edits-per-step": edits_per_step,
        "lr": lr,
        "patience": patience,
        "limit": limit,
        "seed": seed,
        "threads": threads,
    }
    flags = [*_flags(options), *(["--resume"] if resume else []), *context.args]
    program = ["editors.training"] if ranks is None else ["workers.training", "--ranks", str(ranks)]
    done = subprocess.run([sys.executable, "-m", *program, *flags], check=False)
    if done.returncode == INTERRUPTED:
        raise typer.Exit(INTERRUPTED)
    if done.returncode < 0 or done.returncode > SIGNALLED:
        number = -done.returncode if done.returncode < 0 else done.returncode - SIGNALLED
        raise Misconfigured(f"the training was ended by signal {number}; --resume goes on with it")
    if done.returncode != 0:
        raise typer.Exit(ExitCode.usage)


def _flags(options: Mapping[str, object]) -> Iterator[str]:
    """What was given, as it stands on a command line."""
    for name, value in options.items():
        if value is not None:
            yield from (f"--{name}", str(value))
