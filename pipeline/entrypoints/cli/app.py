"""The command `corrigenda`: puts the groups of commands together and sets up how they log."""

from __future__ import annotations

import inspect
import io
import logging
import os
import sys
from typing import Annotated

import typer
from typer.models import CommandInfo, TyperInfo

from pipeline.entrypoints.cli import (
    audit,
    edits,
    lineage,
    logs,
    models,
    outbox,
    people,
    programs,
    review,
    sql,
    stack,
    standing,
    submitting,
)

CHATTY = ("kafka", "urllib3", "alembic")
"""Libraries that tell of every attempt to connect."""
PANELS = {
    "Run it": ("up", "down", "status", "doctor", "logs", "prune", "outbox", "demo"),
    "Correct": ("submit", "edits", "show", "retry", "dead-letters"),
    "Decide": ("snapshots", "approve", "reject", "revert", "rollback", "register-again"),
    "People": ("person", "reviewer", "mlflow-user"),
    "Use what is live": ("ask", "export", "serve"),
    "Lineages and editors": ("lineage", "evaluate", "train"),
    "Audit": ("audit", "sql"),
}
"""Headings of the list of commands, and what stands under each."""


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"corrigenda {version('corrigenda')}")
        raise typer.Exit


app = typer.Typer(
    name="corrigenda",
    help="Keeps a deployed language model's facts right: corrections in, approved and audited snapshots out.",
    epilog="Exit status: 0 done, 1 the answer is no, 2 wrong input, 3 misconfigured, 4 a service does not answer, "
    "5 stored data does not match its digest, 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

for group in (
    stack,
    submitting,
    standing,
    edits,
    logs,
    models,
    review,
    lineage,
    programs,
    audit,
    sql,
    outbox,
    people,
):
    group.add_commands(app)


def _help_to_any_width(group: typer.Typer) -> None:
    """Make each paragraph of a help one line: typer keeps those of the docstring, ragged on a narrow terminal."""
    for command in group.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for below in group.registered_groups:
        if below.typer_instance is not None:
            _help_to_any_width(below.typer_instance)


PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
every: list[CommandInfo | TyperInfo] = [*app.registered_commands, *app.registered_groups]
for registered in every:
    named = registered.name or getattr(registered.callback, "__name__", "").replace("_", "-")
    registered.rich_help_panel = PANEL_OF[named]
_help_to_any_width(app)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Set what holds for every command: nothing yet but the version."""


def main() -> None:
    """Entry point of the console script."""
    _log_to_stderr(os.environ.get("CORRIGENDA_LOG", "").upper())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its number.
            stream.reconfigure(errors="backslashreplace")
    app()


def _log_to_stderr(level: str) -> None:
    """Log what is asked for; without asking, no library's commentary on what the command's one sentence says."""
    is_level = level in logging.getLevelNamesMapping()
    handler = logging.StreamHandler(sys.stderr)
    if not is_level:
        handler.addFilter(lambda record: not record.name.startswith(CHATTY))
    logging.basicConfig(level=level if is_level else logging.WARNING, handlers=[handler], format="%(message)s")
    if level and not is_level:
        logging.getLogger(__name__).warning("expected CORRIGENDA_LOG to be a level such as DEBUG, got %r", level)
