"""Commands about side effects that are owed: those that failed for good, and how they are sent again."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import typer

from pipeline.bootstrap import stores
from pipeline.domain.errors import InvalidInput
from pipeline.entrypoints.console import MAX_ROWS, JsonOption, ReasonOption, exits_clearly, print_json, print_rows, say
from pipeline.entrypoints.local_settings import cli_actor, current_settings


def add_commands(app: typer.Typer) -> None:
    """Register the group of this file."""
    outbox = typer.Typer(help="Side effects that failed for good: list them, send them again.", no_args_is_help=True)
    outbox.command("list")(exits_clearly(outbox_list))
    outbox.command("resend")(exits_clearly(outbox_resend))
    app.add_typer(outbox, name="outbox")


def outbox_list(
    limit: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Most rows.")] = 100,
    failing: Annotated[bool, typer.Option("--failing", help="Those that failed and will be tried again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List side effects that were given up after their last try, with the last error.

    Example: corrigenda outbox list
    """
    outbox = stores(current_settings()).outbox
    found = outbox.failing(limit=limit) if failing else outbox.given_up(limit=limit)
    rows: list[dict[str, Any]] = [dict(row) for row in found]
    at = {"next_attempt_at": "next try"} if failing else {"given_up_at": "given up"}
    columns = {"outbox_id": "id", "kind": "kind", **at, "attempts": "tries", "error": "error"}
    empty = "no side effect fails" if failing else "no side effect was given up"
    print_rows(rows, columns, as_json=as_json, empty=empty, whole=("outbox_id",), below="error")


def outbox_resend(
    outbox_id: Annotated[str | None, typer.Argument(help="Id from the list.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Send every one again.")] = False,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Owe side effects that were given up anew, with all their tries. Mend first what made them fail.

    Example: corrigenda outbox resend --all
    """
    if (outbox_id is None) != every:
        raise InvalidInput("expected either an id from `corrigenda outbox list` or --all")
    chosen = [_uuid(outbox_id)] if outbox_id else None
    found = stores(current_settings()).outbox.resend(chosen, actor=cli_actor(), reason=reason)
    if outbox_id and not found:
        raise InvalidInput(f"expected the id of a side effect that was given up, got {outbox_id}")
    if as_json:
        print_json({"resent": list(found)})
    else:
        say(f"owed again: {len(found)}")


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise InvalidInput(f"expected the id of a side effect, got {text!r:.80}") from None
