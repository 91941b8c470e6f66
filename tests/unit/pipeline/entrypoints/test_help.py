"""The `--help` of every command, which people read on terminals of any width."""

from __future__ import annotations

from importlib import import_module

import pytest
import typer

from pipeline.entrypoints.cli.app import MODULE_OF
from tests.support.commands import every_command


def test_the_terminal_alone_breaks_the_lines_of_a_help() -> None:
    found = [str(command.help) for _, command in every_command()]
    assert len(found) > 40
    assert all(paragraph and "\n" not in paragraph for text in found for paragraph in text.split("\n\n"))


@pytest.mark.parametrize("module", sorted({*MODULE_OF.values()}))
def test_a_module_adds_the_commands_that_are_listed_for_it(module: str) -> None:
    group = typer.Typer()
    import_module(f"pipeline.entrypoints.cli.{module}").add_commands(group)
    added = {command.name for command in typer.main.get_group(group).commands.values()}
    assert added == {name for name, of in MODULE_OF.items() if of == module}
