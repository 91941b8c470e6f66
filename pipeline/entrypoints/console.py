"""How commands speak: tables or JSON on standard output, one sentence on standard error, documented exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from infra.local.errors import LocalStackError
from pipeline.domain.errors import CorrigendaError, IntegrityBroken, InvalidInput, Misconfigured, StreamGap

P = ParamSpec("P")
R = TypeVar("R")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LineageOption = Annotated[
    str | None, typer.Option("--lineage", "-l", help="Name of the lineage; may be left out when there is only one.")
]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why, for the audit trail.")]


class ExitCode(IntEnum):
    """What a command's exit status means."""

    done = 0
    """It did what it was asked."""
    failed = 1
    """It ran, and the answer is no: refused, not verified, not balanced."""
    usage = 2
    """The input or the command line cannot be right."""
    misconfigured = 3
    """A setting, file or model cannot work until a person changes it."""
    unavailable = 4
    """A service does not answer; the same command may work later."""
    broken = 5
    """Stored data does not match its digest."""


out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False, indent=2) + "\n")


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool, empty: str) -> None:
    """Show records as a table with the named columns (key to heading), or all of them as JSON."""
    if as_json:
        print_json(list(rows))
    elif not rows:
        out.print(empty)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in columns.values():
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(_cell(row.get(key)) for key in columns))
        out.print(table)


def print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Show one record, a field a line, or as JSON."""
    if as_json:
        print_json(record)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in record.items():
        table.add_row(key.replace("_", " "), _cell(value))
    out.print(table)


def exits_clearly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an expected error into one sentence on standard error and a documented exit status."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except CorrigendaError as error:
            err.print(f"corrigenda: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(exit_code(error)) from None
        except LocalStackError as error:
            err.print(f"corrigenda: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(ExitCode.misconfigured) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return wrapped


def exit_code(error: CorrigendaError) -> int:
    """The exit status that stands for an error."""
    match error:
        case InvalidInput():
            return ExitCode.usage
        case Misconfigured() | StreamGap():
            return ExitCode.misconfigured
        case IntegrityBroken():
            return ExitCode.broken
        case _:
            return ExitCode.unavailable if error.retryable else ExitCode.failed


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case datetime():
            return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{value:.3g}"
        case list() | tuple():
            return "\n".join(_cell(item) for item in value)
        case dict():
            return json.dumps(value, default=_plain, ensure_ascii=False)
        case _:
            return str(value)


def _plain(value: Any) -> Any:
    match value:
        case datetime() | date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Path():
            return str(value)
        case bytes():
            return value.decode("utf-8", errors="replace")
        case _:
            return str(value)
