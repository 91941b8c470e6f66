"""The command `corrigenda`: names all commands, imports the one that is asked for, and sets up how they log."""

from __future__ import annotations

import inspect
import io
import logging
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

CHATTY = ("kafka", "urllib3", "alembic")
"""Libraries that tell of every attempt to connect."""
PANELS = {
    "Run it": {
        "up": "stack",
        "down": "stack",
        "doctor": "stack",
        "prune": "stack",
        "demo": "stack",
        "status": "standing",
        "logs": "logs",
        "outbox": "outbox",
    },
    "Correct": {
        "submit": "submitting",
        "edits": "edits",
        "show": "edits",
        "retry": "edits",
        "dead-letters": "audit",
    },
    "Use what is live": {"ask": "models", "export": "models", "serve": "programs"},
    "Decide": {
        "register-again": "models",
        "snapshots": "review",
        "approve": "review",
        "reject": "review",
        "revert": "review",
        "rollback": "review",
    },
    "People": {"mlflow-user": "models", "person": "people", "reviewer": "people"},
    "Lineages and editors": {"evaluate": "programs", "train": "programs", "lineage": "lineage"},
    "Audit": {"sql": "sql", "audit": "audit"},
}
"""Headings of the list of commands, what stands under each, and the module that adds it."""
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
MODULE_OF = {name: module for names in PANELS.values() for name, module in names.items()}


class Commands(TyperGroup):
    """All commands, each imported when it is asked for: a command starts with no more than it needs."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in the order of their list."""
        return [*MODULE_OF]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a name; None if there is none, and then all are there to suggest another."""
        if cmd_name not in self.commands:
            for module in (MODULE_OF[cmd_name],) if cmd_name in MODULE_OF else dict.fromkeys(MODULE_OF.values()):
                self.commands.update(_commands_of(module))
        return super().get_command(ctx, cmd_name)


def _commands_of(module: str) -> dict[str, Any]:
    """Return the commands that a module adds, each under its heading."""
    part = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
    import_module(f"pipeline.entrypoints.cli.{module}").add_commands(part)
    _help_to_any_width(part)
    found: dict[str, Any] = dict(typer.main.get_group(part).commands)
    for name, command in found.items():
        command.rich_help_panel = PANEL_OF[name]
    return found


def _help_to_any_width(group: typer.Typer) -> None:
    """Make each paragraph of a help one line: typer keeps those of the docstring, ragged on a narrow terminal."""
    for command in group.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for below in group.registered_groups:
        if below.typer_instance is not None:
            _help_to_any_width(below.typer_instance)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"corrigenda {version('corrigenda')}")
        raise typer.Exit


app = typer.Typer(
    name="corrigenda",
    cls=Commands,
    help="Keeps a deployed language model's facts right: corrections in, approved and audited snapshots out.",
    epilog="Exit status: 0 done, 1 the answer is no, 2 wrong input, 3 misconfigured, 4 a service does not answer, "
    "5 stored data does not match its digest, 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


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
