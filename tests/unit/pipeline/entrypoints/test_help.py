"""The `--help` of every command, which people read on terminals of any width."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import typer

from pipeline.entrypoints.cli.app import app


def every_help(group: typer.Typer) -> Iterator[str]:
    """Return what each command and the commands of groups below say of themselves."""
    yield from (command.help or str(inspect.getdoc(command.callback)) for command in group.registered_commands)
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from every_help(below.typer_instance)


def test_the_terminal_alone_breaks_the_lines_of_a_help() -> None:
    found = list(every_help(app))
    assert len(found) > 40
    assert all(paragraph and "\n" not in paragraph for text in found for paragraph in text.split("\n\n"))
