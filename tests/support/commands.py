"""The commands of `corrigenda`, all imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from pipeline.entrypoints.cli.app import app


def every_command() -> Iterator[tuple[list[str], Any]]:
    """Return each command with the words that call it; of groups, the commands in them."""
    return _below(typer.main.get_command(app), [])


def _below(found: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    if not hasattr(found, "list_commands"):
        yield words, found
        return
    context = typer.Context(found)
    for name in found.list_commands(context):
        yield from _below(found.get_command(context, name), [*words, name])
