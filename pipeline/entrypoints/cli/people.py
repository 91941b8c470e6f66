"""Commands about people: who may use the HTTP API and the pages, and whose decisions are known to be theirs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.domain.errors import InvalidInput
from pipeline.domain.review.people import Role
from pipeline.entrypoints.console import JsonOption, exits_clearly, print_json, print_rows, say
from pipeline.entrypoints.local_settings import cli_actor, owner_url, reviewers_folder, tokens_folder

NameArgument = Annotated[str, typer.Argument(help="Name of the person, as edits name their submitters.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="File for the token; NAME.token in the home if left out.")
]
RolesOption = Annotated[list[Role] | None, typer.Option("--role", "-r", help="What they may do; repeatable.")]


def add_commands(app: typer.Typer) -> None:
    """Register the groups of this file."""
    person = typer.Typer(help="People who use the HTTP API and the pages, and their roles.", no_args_is_help=True)
    person.command("add")(exits_clearly(person_add))
    person.command("list")(exits_clearly(person_list))
    person.command("remove")(exits_clearly(person_remove))
    app.add_typer(person, name="person")
    reviewer = typer.Typer(help="People whose decisions are known to be theirs.", no_args_is_help=True)
    reviewer.command("add")(exits_clearly(reviewer_add))
    reviewer.command("remove")(exits_clearly(reviewer_remove))
    app.add_typer(reviewer, name="reviewer")


def person_add(
    name: NameArgument, roles: RolesOption = None, file: OutOption = None, as_json: JsonOption = False
) -> None:
    """Give somebody roles, and write their token into a file of mode 600; again for a new token.

    The token opens the HTTP API and the pages; a reviewer's also lets commands decide in their name. Needs the login
    of the schema's owner: that of the embedded stack, or CORRIGENDA_DATABASE_URL.

    Example: corrigenda person add feedback-desk --role requester
    """
    if not roles:
        raise InvalidInput(f"expected --role, one or more of {', '.join(Role)}; got none")
    path = file or tokens_folder() / f"{name}.token"
    _hand_out(name, roles, path)
    if as_json:
        print_json({"person": name, "roles": sorted(roles), "token_file": str(path)})
    else:
        say(f"{name} is {' and '.join(sorted(roles))}; the token is in {path}")


def person_list(as_json: JsonOption = False) -> None:
    """List everybody who has a role. Needs the login of the schema's owner, as `person add` does.

    Example: corrigenda person list
    """
    from pipeline.adapters.people import listed_people

    rows = listed_people(owner_url())
    shown = rows if as_json else [row | {"roles": ", ".join(row["roles"])} for row in map(dict, rows)]
    columns = {"name": "name", "roles": "roles", "added_at": "since"}
    print_rows(shown, columns, as_json=as_json, empty="nobody yet; `corrigenda person add NAME --role requester`")


def person_remove(name: NameArgument, roles: RolesOption = None, as_json: JsonOption = False) -> None:
    """Take roles away, all of them if none is named: then the token opens nothing any more.

    Example: corrigenda person remove feedback-desk
    """
    from pipeline.adapters.people import remove_person

    gone = roles or list(Role)
    remove_person(owner_url(), name, gone, actor=cli_actor())
    if as_json:
        print_json({"removed": name, "roles": sorted(gone)})
    else:
        say(f"{name} is no {' or '.join(sorted(gone))} any more")


def reviewer_add(name: NameArgument, file: OutOption = None, as_json: JsonOption = False) -> None:
    """Give a reviewer a database login, and write its token into a file of mode 600; again for a new token.

    It is `person add NAME --role reviewer`. Needs the login of the schema's owner: that of the embedded stack, or
    CORRIGENDA_DATABASE_URL.

    Example: corrigenda reviewer add anna && CORRIGENDA_REVIEWER_TOKEN_FILE=anna.token corrigenda approve head
    """
    path = file or reviewers_folder() / f"{name}.token"
    _hand_out(name, [Role.reviewer], path)
    if as_json:
        print_json({"reviewer": name, "token_file": str(path)})
    else:
        say(f"{name} is a reviewer; the token is in {path}: CORRIGENDA_REVIEWER_TOKEN_FILE={path}")


def reviewer_remove(name: NameArgument, as_json: JsonOption = False) -> None:
    """Shut a reviewer out; what they decided stays theirs.

    Example: corrigenda reviewer remove anna
    """
    from pipeline.adapters.people import remove_person

    remove_person(owner_url(), name, [Role.reviewer], actor=cli_actor())
    if as_json:
        print_json({"removed": name})
    else:
        say(f"{name} is no reviewer any more")


def _hand_out(name: str, roles: Sequence[Role], path: Path) -> None:
    """Add somebody, and write the token into a file that only its owner may read."""
    from pipeline.adapters.people import add_person

    token = add_person(owner_url(), name, roles, actor=cli_actor())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(token + "\n")
    except OSError as error:
        raise InvalidInput(f"expected a file that can be written, got {path}: {error.strerror}") from error
