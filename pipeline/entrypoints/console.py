"""How commands speak: tables or JSON on standard output, one sentence on standard error, documented exit codes."""

from __future__ import annotations

import errno
import json
import logging
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.domain.errors import CorrigendaError, IntegrityBroken, InvalidInput, Misconfigured, StreamGap
from pipeline.domain.formats.refusals import INTERRUPTED

P = ParamSpec("P")
R = TypeVar("R")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LineageOption = Annotated[
    str | None, typer.Option("--lineage", "-l", help="Name of the lineage; may be left out when there is only one.")
]
MAX_REASON = 1000
ReasonOption = Annotated[
    str,
    typer.Option("--reason", "-r", help="Why, for the audit trail.", callback=lambda text: _short_enough(text)),
]
MAX_ROWS = 1_000_000
WIDE = 120
"""Columns of a terminal on which sentences have room in a table."""
GAP = 2
"""Columns of a terminal between the name of a field and its value."""
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of what follows."""


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


def say(text: str = "") -> None:
    """Print a sentence on standard output: as it is in a pipe, broken between words on a terminal.

    A word that is wider than the terminal, such as a link, is left to the terminal, which copies it as one.
    """
    out.print(Text(visible(text)), soft_wrap=not out.is_terminal or _longest_word(text) > out.width)


def say_block(heading: str, text: str) -> None:
    """Print a heading and, indented below it, a text of several lines; a blank line ends the block."""
    out.print(Text(visible(heading), style="bold"), soft_wrap=not out.is_terminal)
    if out.is_terminal:
        out.print(Padding(Text(visible(text)), (0, 0, 0, 2)))
    else:
        say(textwrap.indent(text, "  "))
    say()


def note(text: str) -> None:
    """Say something beside the answer, on standard error: what reads the answer does not see it."""
    err.print(Text(visible(text)), soft_wrap=not err.is_terminal)


def complain(text: str) -> None:
    """Print a sentence on standard error: on one line in a pipe, broken between words on a terminal."""
    err.print(Text(visible(text)), style="red", soft_wrap=not err.is_terminal)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output; escaped where the output is no UTF-8."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, default=plain, ensure_ascii=not is_unicode, indent=2)
    # What a command line held that is no UTF-8 comes as surrogates; JSON writes those as it writes any character.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    as_json: bool,
    empty: str,
    whole: Sequence[str] = (),
    below: str | None = None,
) -> None:
    """Show records as a table with the named columns (key to heading), or all of them as JSON.

    Args:
        rows: the records.
        columns: which fields to show, and under which headings.
        as_json: whether to print all fields as JSON instead.
        empty: what to say when there are none.
        whole: fields never broken over lines, because people copy them.
        below: a field of whole sentences: below the table, each behind its row's first field, on a narrow terminal.
    """
    if as_json:
        print_json(list(rows))
    elif not rows:
        say(empty)
    else:
        is_narrow = out.is_terminal and out.width < WIDE
        beside = [key for key in columns if not (is_narrow and key == below)]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for key in beside:
            table.add_column(columns[key], overflow="fold", no_wrap=key in whole)
        for row in rows:
            table.add_row(*(cell(row.get(key)) for key in beside))
        _print_table(table)
        if below is not None and below not in beside:
            for row in (one for one in rows if one.get(below)):
                say(f"{_shown(row.get(beside[0]))}: {_shown(row[below])}")


def print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Show one record, a field a line, or as JSON; a link that a terminal has no room for has a line of its own."""
    if as_json:
        print_json(record)
        return
    fields = {key.replace("_", " "): cell(value) for key, value in record.items()}
    width = max(map(cell_len, fields), default=0)
    table = _fields_table(width)
    for heading, value in fields.items():
        if out.is_terminal and _longest_word(value.plain) > out.width - width - GAP:
            _print_table(table)
            table = _fields_table(width)
            out.print(Text(heading, style="bold"))
            out.print(value, soft_wrap=True)
        else:
            table.add_row(heading, value)
    _print_table(table)


def exits_clearly(command: Callable[P, R], *, has_events: bool = True) -> Callable[P, R]:
    """Turn an error into one sentence on standard error and a documented exit status; never a traceback.

    Args:
        command: what to run.
        has_events: whether it may log events, which are then kept out of its output; else it is spared their library.
    """

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if has_events:
            _log_events_to_stderr()
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            # Typer's own errors of usage know their exit status and how to show themselves.
            if hasattr(error, "exit_code"):
                raise
            logging.getLogger(__name__).debug("the command failed", exc_info=True)
            sentence, status = told(error)
            complain(f"corrigenda: {sentence}")
            raise typer.Exit(status) from None

    return wrapped


def _log_events_to_stderr() -> None:
    """Keep events out of a command's output; done here, and not at the start, so that help is shown without it."""
    import structlog

    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def told(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit status that goes with it."""
    from infra.local.errors import LocalStackError

    match error:
        case CorrigendaError():
            return str(error), exit_code(error)
        case LocalStackError():
            return str(error), ExitCode.misconfigured
        case UnicodeError():
            return f"expected text in UTF-8, got some that is not: {error}", ExitCode.usage
        case OSError():
            what = f" {error.filename}" if error.filename else ""
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            said = f"cannot read or write{what}: {error.strerror or error}"
            return said, ExitCode.unavailable if is_full else ExitCode.misconfigured
        case _:
            kind = type(error).__name__
            return f"failed in a way nobody foresaw, {kind}: {error}; CORRIGENDA_LOG=DEBUG shows where", ExitCode.failed


def exit_code(error: CorrigendaError) -> int:
    """Return the exit status that stands for an error."""
    match error:
        case InvalidInput():
            return ExitCode.usage
        case Misconfigured() | StreamGap():
            return ExitCode.misconfigured
        case IntegrityBroken():
            return ExitCode.broken
        case _:
            return ExitCode.unavailable if error.retryable else ExitCode.failed


def visible(text: str) -> str:
    """Return the text with its control characters spelled out: what a stranger sent must not steer the terminal."""
    return "".join(ascii(char)[1:-1] if _steers(char) else char for char in text)


def cell(value: Any) -> Text:
    """Return how a value looks in a table; its brackets and colons are plain text, not markup."""
    return Text(visible(_shown(value)))


def plain(value: Any) -> Any:
    """Return what stands in JSON for a value that JSON has no type for."""
    match value:
        case datetime() | date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes():
            return value.decode("utf-8", errors="replace")
        case _:
            return str(value)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case datetime():
            return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{value:.3g}"
        case list() | tuple():
            return "\n".join(_shown(item) for item in value)
        case dict():
            return json.dumps(value, default=plain, ensure_ascii=False)
        case Path():
            return str(value)
        case _:
            return str(value)


def _steers(char: str) -> bool:
    return char in TURNS or (char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs"))


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _fields_table(width: int) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True, width=width)
    table.add_column(overflow="fold")
    return table


def _print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or as wide as it needs where a program reads it; nothing without rows."""
    if not table.row_count:
        return
    if out.is_terminal:
        out.print(table)
        return
    width = table.__rich_measure__(out, out.options.update(max_width=100_000)).maximum
    wide = Console(width=width, highlight=False)
    with wide.capture() as captured:
        wide.print(table)
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def _short_enough(text: str) -> str:
    if len(text) > MAX_REASON:
        raise typer.BadParameter(f"expected at most {MAX_REASON} characters, got {len(text)}")
    return text
