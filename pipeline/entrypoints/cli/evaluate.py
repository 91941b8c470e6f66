"""The command that measures editors on edits of a file, without any service. Measures nothing itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.entrypoints.console import ExitCode, exits_clearly


def add_commands(app: typer.Typer) -> None:
    """Register the command of this file."""
    passes_on = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(context_settings=passes_on)(exits_clearly(evaluate))


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Edits: our JSONL, CounterFact, zsRE, EasyEdit or KnowEdit.")],
    edits: Annotated[int, typer.Option(min=1, help="How many from the top.")],
    protocol: Annotated[
        Literal["stream", "single"], typer.Option(help="Batches on top of each other, or one edit at a time.")
    ] = "stream",
    batch: Annotated[int, typer.Option(min=1, help="Edits a batch of a stream.")] = 32,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=0, help="Edits between checkpoints; about powers of two if left out, 0 for none.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Active edits asked at a checkpoint on the way.")] = 512,
    free_sample: Annotated[int, typer.Option(min=0, help="Edits that are also asked by free generation.")] = 256,
    rephrase_rows: Annotated[
        int | None, typer.Option(min=0, help="Rephrases after the first that are edit rows; the first is the probe.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="One or more of recursive, least_squares, sum, ft; several with commas.")
    ] = None,
    editor: Annotated[
        list[str] | None, typer.Option(help="Folder of a trained editor, or SOLVER=FOLDER; the gradient if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every sample.")] = 0,
    task: Annotated[str, typer.Option(help="causal, seq2seq or classifier.")] = "causal",
    model: Annotated[Path | None, typer.Option(help="Folder of the base; the embedded SmolLM2 if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for figures.json and curves.png.")] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", help="File for the figures; - prints them, as without --out.")
    ] = None,
) -> None:
    """Measure editors on a stream of edits, or on single edits, to a fresh copy of the base; needs no service.

    Every constant of an editor is an option too: see `python -m editors.evaluation --help`.

    Example: corrigenda evaluate --data facts.jsonl --edits 64 --solver sum,recursive --out measured
    """
    from infra.local.base_model import ensure_base_model

    json_out = json_out or (None if out else "-")
    _check_files(data, json_out, editor or [])
    options = {
        "data": data,
        "edits": edits,
        "protocol": protocol,
        "batch": batch,
        "checkpoint-every": checkpoint_every,
        "sample": sample,
        "free-sample": free_sample,
        "rephrase-rows": rephrase_rows,
        "solver": solver,
        "editor": editor,
        "seed": seed,
        "task": task,
        "model": model or ensure_base_model(),
        "out": out,
        "json": json_out,
    }
    done = subprocess.run([sys.executable, "-m", "editors.evaluation", *_flags(options), *context.args], check=False)
    if done.returncode < 0:
        raise Misconfigured(f"the evaluation was ended by signal {-done.returncode}")
    if done.returncode != 0:
        raise typer.Exit(ExitCode.usage)


def _flags(options: dict[str, object]) -> Iterator[str]:
    """What was given, as it stands on a command line."""
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                yield from (f"--{name}", str(item))


def _check_files(data: Path, json_out: str | None, editors: list[str]) -> None:
    """Say before the measuring that a file cannot be read or written."""
    if not data.is_file():
        raise InvalidInput(f"expected a file of edits, got {data}, which is none")
    for editor in editors:
        if not any(Path(folder).is_dir() for folder in (editor, editor.partition("=")[2]) if folder):
            raise InvalidInput(f"expected the folder of a trained editor, got {editor}, which is none")
    if json_out is None or json_out == "-":
        return
    target = Path(json_out)
    folder = target.absolute().parent
    if target.is_dir() or not os.access(target if target.exists() else folder, os.W_OK):
        raise InvalidInput(f"expected a file that can be written for --json, got {target}")
