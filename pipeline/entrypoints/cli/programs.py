"""Commands that are programs in processes of their own: `evaluate`, `train`, `serve` and `lineage plan`.

The program declares the options and checks them. A command passes its words on, and adds only what the control plane
knows: the embedded base model, and the DeepSpeed configuration of the settings. None of them needs a service.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from pipeline.adapters.login_names import Login
from pipeline.computing import computing_environment
from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.refusals import INTERRUPTED
from pipeline.domain.formats.sizes import shown_size
from pipeline.entrypoints.children import GRACE_SECONDS, end, run_module, words_of
from pipeline.entrypoints.console import (
    ExitCode,
    JsonOption,
    exits_clearly,
    print_json,
    print_rows,
    say,
)
from pipeline.entrypoints.local_settings import current_settings, load_settings, serving_environment

PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}
SIGNALLED = 128
"""What the launcher of ranks adds to the number of the signal that ended one of them."""
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals by which a command is ended, which its program is told of too: it may have something to clear up."""


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file, but `lineage plan`."""
    for name, command in (("evaluate", evaluate), ("train", train), ("serve", serve)):
        app.command(name, context_settings=PASSED_ON, add_help_option=False)(exits_clearly(command))


def add_plan(lineage: typer.Typer) -> None:
    """Register `lineage plan`."""
    lineage.command("plan", context_settings=PASSED_ON, add_help_option=False)(exits_clearly(lineage_plan))


def evaluate(context: typer.Context) -> None:
    """Measure editors on a stream of edits, or on single edits, to a fresh copy of the base; needs no service.

    The base is the embedded SmolLM2 without --model. Without --ranks one process holds it whole, on the CPU or on the
    device that --device names; with --ranks N each of N processes has its part, as in a training.

    Example: corrigenda evaluate --data facts.jsonl --edits 64 --solver sum,recursive --out measured
    """
    program, words = _on_ranks(context, "evaluation")
    _run(context, program, words, ended="the evaluation was ended by signal {}")


def train(context: typer.Context) -> None:
    """Train MEND's transform for a base into an editor directory, OUT/best; needs no service.

    The base is the embedded SmolLM2 without --model. Without --ranks one process holds it whole, on the CPU; with
    --ranks N each of N processes has its part, on a device of its own where there are any (--deepspeed-config FILE
    instead of infra/deepspeed/zero3.json).

    A run that was stopped goes on with --resume, to the same bytes.

    Example: corrigenda train --data facts.jsonl --out trained --steps 400
    """
    program, words = _on_ranks(context, "training")
    try:
        _run(context, program, words, ended="the training was ended by signal {}")
    except Misconfigured as error:
        raise Misconfigured(f"{error}; --resume goes on with it" if _has_begun(words) else str(error)) from None


def serve(context: typer.Context) -> None:
    """Serve what is live of lineages over OpenAI's API, and follow their aliases, until Ctrl-C.

    Every lineage of the database is a model. A version goes live only if its files are what the database says.

    Example: corrigenda serve --port 8100 --token-file tokens
    """
    words = context.args
    if _names(words, "--help"):
        given: dict[str, str] = {}
    elif _names(words, "--trust-tags"):
        given = serving_environment(load_settings())
    else:
        given = serving_environment(current_settings(Login.serving))
    _run(context, "workers.serving", words, ended="the server was ended by signal {}", given=given)


def lineage_plan(context: typer.Context, as_json: JsonOption = False) -> None:
    """Say what one rank needs to hold and edit a base, and whether it fits; no weight is read.

    The DeepSpeed configuration is CORRIGENDA_DEEPSPEED_CONFIG's, or with --offload the one that ships for that.

    Example: corrigenda lineage plan --model llama-8b --ranks 4 --memory 24GB
    """
    program, words = "workers.memory.plan", context.args
    if _names(words, "--help"):
        _run(context, program, words, ended="the plan was ended by signal {}")
        return
    config = load_settings().deepspeed_config
    plan = json.loads(run_module(program, *([f"--deepspeed-config={config}"] if config else []), *words))
    if as_json:
        print_json(plan)
    else:
        _show(plan)
    if plan["refusal"] is not None:
        raise Misconfigured(plan["refusal"])
    if not as_json:
        say(_verdict(plan))


def _names(words: Sequence[str], option: str) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)


def _has_begun(words: Sequence[str]) -> bool:
    """Return whether a training has written down what it is, so that it can be resumed."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--out", type=Path, default=Path())
    reader.add_argument("--only-prepare", action="store_true")
    given, _ = reader.parse_known_args(words)
    return not given.only_prepare and (given.out / "run.json").is_file()


def _on_ranks(context: typer.Context, program: str) -> tuple[str, list[str]]:
    """Return the module of a program that ranks may run together, and its words."""
    words = _with_model(context)
    return ("workers.on_ranks", [program, *words]) if _names(words, "--ranks") else (f"editors.{program}", words)


def _with_model(context: typer.Context) -> list[str]:
    """Return the words, and the embedded base model where none is named."""
    if _names(context.args, "--model") or _names(context.args, "--help"):
        return context.args
    from infra.local.base_model import ensure_base_model

    return [*context.args, "--model", str(ensure_base_model())]


def _run(
    context: typer.Context, program: str, words: Sequence[str], *, ended: str, given: Mapping[str, str] | None = None
) -> None:
    """Run a program on this terminal; its help comes after that of the command.

    Args:
        context: of the command.
        program: the module to run.
        words: what to pass on.
        ended: what to say if a signal ended it.
        given: variables that it gets besides those of its libraries.

    Raises:
        typer.Exit: if it refuses its input, which it has said itself, or a person stopped it.
        Misconfigured: if a signal ended it.
    """
    if _names(words, "--help"):
        typer.echo(context.get_help())
    environment = computing_environment() | dict(given or {})
    with subprocess.Popen(words_of(program, *words), env=environment, text=True) as process, _passing_on(process):
        try:
            status = process.wait()
        except KeyboardInterrupt:
            end(process, patience=GRACE_SECONDS)
            status = INTERRUPTED
    if status in (INTERRUPTED, ExitCode.misconfigured):
        raise typer.Exit(status)
    if status < 0 or status > SIGNALLED:
        raise Misconfigured(ended.format(-status if status < 0 else status - SIGNALLED))
    if status != 0:
        raise typer.Exit(ExitCode.usage)


@contextmanager
def _passing_on(process: subprocess.Popen[str]) -> Iterator[None]:
    """Pass on to a program what would end this process, which then waits for it; what is ignored stays so."""
    numbers = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda told, _: process.send_signal(told)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(plan: Mapping[str, Any]) -> None:
    """Print the lines and their sums; the accelerator's column only where ranks have one."""
    columns = {"part": "one rank needs"}
    columns |= {"accelerator": "accelerator"} if plan["has_accelerator"] else {}
    total = {"part": "together", **{key: plan[key] for key in ("accelerator_bytes", "host_bytes")}}
    rows = [
        {"part": line["part"], "accelerator": _size(line["accelerator_bytes"]), "host": _size(line["host_bytes"])}
        for line in (*plan["lines"], total)
    ]
    print_rows(rows, columns | {"host": "host"}, as_json=False, empty="nothing")


def _size(num_bytes: int) -> str | None:
    return shown_size(num_bytes) if num_bytes else None


def _verdict(plan: Mapping[str, Any]) -> str:
    base = f"a {plan['dtype']} base of {plan['num_params'] / 1e9:.3g} billion parameters"
    held = f"it fits: {base} on {plan['num_ranks']} ranks needs"
    host, memory = shown_size(plan["host_bytes"]), shown_size(plan["memory_bytes"])
    if not plan["has_accelerator"]:
        return f"{held} {host} of {memory} for each"
    on_host = f"and {host} of the host, {shown_size(plan['host_bytes'] * plan['num_ranks'])} where all share one"
    return f"{held} {shown_size(plan['accelerator_bytes'])} of {memory} on each accelerator {on_host}"
