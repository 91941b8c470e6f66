"""The command that says how much memory a rank needs for a base. Never imports torch: `workers.memory.plan` counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.config import load_settings
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.domain.sizes import parse_size, shown_size
from pipeline.entrypoints.children import run_module
from pipeline.entrypoints.console import JsonOption, print_json, print_rows, say

OFFLOAD_CONFIG = Path(__file__).resolve().parents[3] / "infra" / "deepspeed" / "zero3-offload.json"


def lineage_plan(
    model: Annotated[Path, typer.Option(help="Folder of the base; only its config is read.")],
    ranks: Annotated[int, typer.Option(help="Ranks that hold it together.")],
    memory: Annotated[str, typer.Option(help="What each rank has to compute in: 24GB, 512MiB or bytes.")],
    offload: Annotated[bool, typer.Option("--offload", help="Weights lie on the host between uses.")] = False,
    host_memory: Annotated[
        str | None, typer.Option(help="What the host has for each rank; not looked at if left out.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Ranks compute on the host: --memory is the host's.")] = False,
    task: Annotated[
        str | None, typer.Option(help="causal, seq2seq or classifier; what the model's config declares if left out.")
    ] = None,
    editor: Annotated[Path | None, typer.Option(help="Folder of a trained editor, which names its weights.")] = None,
    inner_param: Annotated[list[str] | None, typer.Option(help="A weight to edit; repeatable.")] = None,
    batch_size: Annotated[int, typer.Option(help="Most edits in a batch.")] = 32,
    num_edits: Annotated[int, typer.Option(help="Active edits that the ledger holds.")] = 1000,
    tokens: Annotated[int, typer.Option(help="Most padded tokens of one backward pass on a rank.")] = 512,
    as_json: JsonOption = False,
) -> None:
    """Say what one rank needs to hold and edit a base, and whether it fits; no weight is read.

    The DeepSpeed configuration is CORRIGENDA_DEEPSPEED_CONFIG's, or with --offload the one that ships for that.

    Example: corrigenda lineage plan --model llama-8b --ranks 4 --memory 24GB
    """
    if editor is not None and inner_param:
        raise InvalidInput("expected either --inner-param or a trained editor, which names its own weights; got both")
    counts = {"ranks": ranks, "batch-size": batch_size, "num-edits": num_edits, "tokens": tokens}
    for name, count in counts.items():
        if count < 1:
            raise InvalidInput(f"expected --{name} of at least 1, got {count}")
    options: dict[str, object] = {
        **counts,
        "model": model.absolute(),
        "memory": parse_size(memory),
        "host-memory": parse_size(host_memory) if host_memory else None,
        "task": task,
        "editor": editor.absolute() if editor else None,
        "deepspeed-config": OFFLOAD_CONFIG if offload else load_settings().deepspeed_config,
    }
    flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
    flags += [f"--inner-param={name}" for name in inner_param or ()] + (["--cpu"] if cpu else [])
    plan = json.loads(run_module("workers.memory.plan", *flags))
    if as_json:
        print_json(plan)
    else:
        _show(plan)
    if plan["refusal"] is not None:
        raise Misconfigured(plan["refusal"])
    if not as_json:
        say(_verdict(plan, shown_size(parse_size(memory))))


def _show(plan: Mapping[str, Any]) -> None:
    """The lines and their sums as a table; only the host's where there is nothing else."""
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


def _verdict(plan: Mapping[str, Any], memory: str) -> str:
    base = f"a {plan['dtype']} base of {plan['num_params'] / 1e9:.3g} billion parameters"
    held = f"it fits: {base} on {plan['num_ranks']} ranks needs"
    host = shown_size(plan["host_bytes"])
    if not plan["has_accelerator"]:
        return f"{held} {host} of {memory} for each"
    on_host = f"and {host} of the host, {shown_size(plan['host_bytes'] * plan['num_ranks'])} where all share one"
    return f"{held} {shown_size(plan['accelerator_bytes'])} of {memory} on each accelerator {on_host}"
