"""Commands about history: audit chains and dead letters."""

from __future__ import annotations

import json
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from pipeline.adapters.login_names import Login
from pipeline.bootstrap import publisher, stores
from pipeline.domain.audit import AuditEvent
from pipeline.domain.errors import InvalidInput
from pipeline.domain.review.approvals import is_claimed_actor, shown_actor
from pipeline.entrypoints.cli.bundles import audit_bundle, audit_verify_bundle
from pipeline.entrypoints.cli.verifying import ChainArgument, audit_verify
from pipeline.entrypoints.console import (
    MAX_ROWS,
    ExitCode,
    JsonOption,
    complain,
    exits_clearly,
    plain,
    print_json,
    print_rows,
    say,
)
from pipeline.entrypoints.local_settings import cli_actor, current_settings

if TYPE_CHECKING:
    from pipeline.adapters.sql.audit import SqlAuditStore
    from pipeline.domain.contract.messages import DeadLetter

PAGE = 1000
MAX_SEQ = 2**63 - 1
"""Of the column."""


def add_commands(app: typer.Typer) -> None:
    """Register the groups of this file."""
    audit = typer.Typer(help="Read and check the hash-chained history.", no_args_is_help=True)
    audit.command("show")(exits_clearly(audit_show))
    audit.command("verify")(exits_clearly(audit_verify))
    audit.command("export")(exits_clearly(audit_export))
    audit.command("bundle")(exits_clearly(audit_bundle))
    audit.command("verify-bundle")(exits_clearly(audit_verify_bundle))
    app.add_typer(audit, name="audit")
    letters = typer.Typer(help="Messages that could never be an edit.", no_args_is_help=True)
    letters.command("list")(exits_clearly(dead_letters_list))
    letters.command("replay")(exits_clearly(dead_letters_replay))
    app.add_typer(letters, name="dead-letters")


def audit_show(
    chain: Annotated[str, typer.Argument(help="A lineage, or system.")],
    after: Annotated[int, typer.Option(min=0, max=MAX_SEQ, help="Only lines after this one.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Most rows.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Show lines of one chain.

    Example: corrigenda audit show demo --after 100
    """
    audit = stores(current_settings(Login.auditor)).audit
    _known(audit, chain)
    events = audit.events(chain, after_seq=after, limit=limit)
    shown = (lambda actor: actor) if as_json else shown_actor
    rows = [_line(event) | {"actor": shown(event.actor)} for event in events]
    columns = {"seq": "line", "at": "at", "actor": "actor", "action": "action", "subject": "subject"}
    print_rows(rows, columns, as_json=as_json, empty="no lines", whole=("seq", "at", "action"))


def audit_export(
    chain: ChainArgument = None,
    file: Annotated[Path | None, typer.Option("--out", "-o", help="Write there instead of standard output.")] = None,
) -> None:
    """Write chains as JSON lines, with hashes, for somebody else to check.

    Every line is written, also those of a broken chain; then exit status 1 names the first line that does not follow.

    Example: corrigenda audit export demo --out demo-audit.jsonl
    """
    audit = stores(current_settings(Login.auditor)).audit
    if chain:
        _known(audit, chain)
    chains = [chain] if chain else list(audit.chains())
    if file is None:
        _write_events(audit, chains, sys.stdout)
    else:
        try:
            with file.open("w", encoding="utf-8") as stream:
                _write_events(audit, chains, stream)
        except OSError as error:
            raise InvalidInput(f"expected a file that can be written, got {file}: {error.strerror}") from error
    breaks = [(name, found) for name in chains if (found := audit.verify(name)) is not None]
    for name, found in breaks:
        complain(f"corrigenda: {name}: broken at line {found.seq}: {found.reason}; every line is exported all the same")
    if breaks:
        raise typer.Exit(ExitCode.failed)


def _write_events(audit: SqlAuditStore, chains: Sequence[str], stream: TextIO) -> None:
    for name in chains:
        for event in _all_events(audit, name):
            stream.write(json.dumps(_line(event), default=plain, ensure_ascii=False) + "\n")


def _line(event: AuditEvent) -> dict[str, Any]:
    """Return a line as it is hashed, and whether its actor's name is only claimed: lines of before do not say it."""
    return asdict(event) | {"is_claimed": is_claimed_actor(event.actor)}


def dead_letters_list(
    limit: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Most rows.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List refused messages, newest first, with the reason.

    Example: corrigenda dead-letters list
    """
    rows = [_letter_row(letter) for letter in stores(current_settings()).intake.dead_letters(limit=limit)]
    columns = {"dead_letter_id": "id", "offset": "offset", "error": "reason", "replayed_at": "replayed"}
    whole = ("dead_letter_id", "offset")
    print_rows(rows, columns, as_json=as_json, empty="no dead letters", whole=whole, below="error")


def dead_letters_replay(
    dead_letter_id: Annotated[str, typer.Argument(help="Id from the list.")],
    file: Annotated[
        Path | None, typer.Option("--with", help="Send this corrected message instead of the original bytes.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a refused message to the topic again, as it was or corrected.

    Example: corrigenda dead-letters replay 0199… --with corrected.json
    """
    settings = current_settings()
    kept = stores(settings)
    letter = kept.intake.dead_letter(dead_letter_id)
    if letter.pruned_at is not None and file is None:
        raise InvalidInput(f"expected a letter with its bytes, got {dead_letter_id}, pruned; send one --with FILE")
    key, value = _replacement(file) if file else ((letter.key or b"").decode("utf-8", "replace"), letter.value)
    with publisher(settings) as send:
        send.publish(settings.requests_topic, key=key, value=value)
    kept.intake.mark_replayed(dead_letter_id, actor=cli_actor())
    if as_json:
        print_json({"replayed": dead_letter_id})
    else:
        say(f"sent {dead_letter_id} to {settings.requests_topic} again")


def _replacement(file: Path) -> tuple[str, bytes]:
    """Return the key and bytes of a corrected message; refused if it can never be an edit either."""
    from pipeline.domain.contract.wire import parse_message

    try:
        value = file.read_bytes().removeprefix(BOM_UTF8)
    except OSError as error:
        raise InvalidInput(f"expected a readable file, got {file}: {error.strerror}") from error
    return parse_message(value).lineage, value


def _letter_row(letter: DeadLetter) -> dict[str, Any]:
    value = letter.value or b""
    return {
        "dead_letter_id": letter.dead_letter_id,
        "origin": f"{letter.partition.topic}/{letter.partition.partition}@{letter.offset}",
        "partition": letter.partition.partition,
        "offset": letter.offset,
        "error": letter.error,
        "num_bytes": len(value),
        "value": value[:1000].decode("utf-8", "replace"),
        "created_at": letter.created_at,
        "replayed_at": letter.replayed_at,
        "pruned_at": letter.pruned_at,
    }


def _known(audit: SqlAuditStore, chain: str) -> None:
    if chain not in audit.chains():
        raise InvalidInput(f"expected a chain, one of {', '.join(audit.chains()) or 'none'}; got {chain}")


def _all_events(audit: SqlAuditStore, chain: str) -> Iterator[AuditEvent]:
    after = 0
    while page := audit.events(chain, after_seq=after, limit=PAGE):
        yield from page
        after = page[-1].seq
