"""Commands about reviewers: people whose decisions are known to be theirs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.domain.errors import InvalidInput
from pipeline.entrypoints.console import JsonOption, exits_clearly, print_json, say
from pipeline.entrypoints.local_settings import cli_actor, owner_url, reviewers_folder

NameArgument = Annotated[str, typer.Argument(help="Name of the reviewer, as edits name their submitters.")]


def add_commands(app: typer.Typer) -> None:
    """Register the group of this file."""
    reviewer = typer.Typer(help="People whose decisions are known to be theirs.", no_args_is_help=True)
    reviewer.command("add")(exits_clearly(reviewer_add))
    reviewer.command("remove")(exits_clearly(reviewer_remove))
    app.add_typer(reviewer, name="reviewer")


def reviewer_add(
    name: NameArgument,
    file: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the token; NAME.token in the home if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give a reviewer a database login, and write its token into a file of mode 600; again for a new token.

    Needs the login of the schema's owner: that of the embedded stack, or CORRIGENDA_DATABASE_URL.

    Example: corrigenda reviewer add anna && CORRIGENDA_REVIEWER_TOKEN_FILE=anna.token corrigenda approve head
    """
    from pipeline.adapters.reviewers import add_reviewer

    path = file or reviewers_folder() / f"{name}.token"
    token = add_reviewer(owner_url(), name, actor=cli_actor())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(token + "\n")
    except OSError as error:
        raise InvalidInput(f"expected a file that can be written, got {path}: {error.strerror}") from error
    if as_json:
        print_json({"reviewer": name, "token_file": str(path)})
    else:
        say(f"{name} is a reviewer; the token is in {path}: CORRIGENDA_REVIEWER_TOKEN_FILE={path}")


def reviewer_remove(name: NameArgument, as_json: JsonOption = False) -> None:
    """Shut a reviewer out; what they decided stays theirs.

    Example: corrigenda reviewer remove anna
    """
    from pipeline.adapters.reviewers import remove_reviewer

    remove_reviewer(owner_url(), name, actor=cli_actor())
    if as_json:
        print_json({"removed": name})
    else:
        say(f"{name} is no reviewer any more")
