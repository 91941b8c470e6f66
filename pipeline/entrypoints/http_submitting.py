"""Sends corrections of the command line over the HTTP API, where one is named: no broker or database is needed then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer

from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.counting import counted
from pipeline.entrypoints.console import ExitCode, complain, print_json, say
from pipeline.entrypoints.correction_files import SOURCE, Line, Refusal

if TYPE_CHECKING:
    from pipeline.client import CorrectionStatus, CorrigendaClient, Receipt
    from pipeline.config import Settings

MAX_IN_A_CALL = 1_000
REFUSED = frozenset({"rejected", "dead", "refused", "not sent"})
SETTLED = REFUSED | {"candidate", "live", "superseded", "gone", "rolled back"}
"""States in which a correction has its verdict."""


def api_client(settings: Settings) -> CorrigendaClient | None:
    """Return a client of the API that the settings name; None if they name none.

    Raises:
        Misconfigured: if there is no token for it, or others may read the token's file.
    """
    if not settings.api_url:
        return None
    from pipeline.adapters.people import token_from
    from pipeline.client import CorrigendaClient

    token = settings.api_token.get_secret_value()
    if not token and settings.api_token_file is not None:
        token = token_from(settings.api_token_file)
    if not token:
        raise Misconfigured("expected CORRIGENDA_API_TOKEN or CORRIGENDA_API_TOKEN_FILE beside CORRIGENDA_API_URL")
    return CorrigendaClient(settings.api_url, token)


def submit_over_http(
    client: CorrigendaClient,
    lines: Sequence[Line],
    refused: Sequence[Refusal],
    *,
    lineage: str | None,
    is_strict: bool,
    wait_seconds: int | None,
    as_json: bool,
) -> None:
    """Send corrections, say what became of each, and wait for their verdicts if that is asked.

    Args:
        client: of the API.
        lines: corrections; what they leave out, the API fills in.
        refused: lines that hold none.
        lineage: of corrections that name none; None for the only one there is.
        is_strict: whether nothing is sent if a line is refused here.
        wait_seconds: how long to wait for verdicts at most; None for not at all.
        as_json: whether to print JSON.

    Raises:
        typer.Exit: 2 if one was refused as it is, 1 if its gate refused one.
        CorrigendaRefused, Unavailable: as the client says.
    """
    receipts, complaints = list["Receipt"](), list(refused)
    if not (is_strict and refused):
        for first in range(0, len(lines), MAX_IN_A_CALL):
            _send(client, lines[first : first + MAX_IN_A_CALL], lineage, receipts, complaints)
    found = _verdicts(client, receipts, wait_seconds) if wait_seconds is not None else []
    complaints.sort(key=lambda one: one.line)
    if as_json:
        told: dict[str, Any] = {"sent": [one.request_id for one in receipts], "refused": list(map(asdict, complaints))}
        print_json(told | ({"edits": [one.model_dump(mode="json") for one in found]} if found else {}))
    else:
        _tell(receipts, complaints, found)
    if complaints:
        raise typer.Exit(ExitCode.usage)
    if any(one.state in REFUSED for one in found):
        raise typer.Exit(ExitCode.failed)


def _send(
    client: CorrigendaClient,
    lines: Sequence[Line],
    lineage: str | None,
    receipts: list[Receipt],
    complaints: list[Refusal],
) -> None:
    more = {} if lineage is None else {"lineage": lineage}
    documents = [
        {"source": SOURCE} | more | dict(line.given) | {"request_id": line.document["request_id"]} for line in lines
    ]
    for line, result in zip(lines, client.submit_all(documents) if documents else (), strict=True):
        if hasattr(result, "detail"):
            complaints.append(Refusal(line=line.number, error=result.detail))
        else:
            receipts.append(result)


def _verdicts(client: CorrigendaClient, receipts: Sequence[Receipt], seconds: int) -> list[CorrectionStatus]:
    return [client.wait(one.id, until=SETTLED, timeout=timedelta(seconds=seconds)) for one in receipts]


def _tell(receipts: Sequence[Receipt], complaints: Sequence[Refusal], found: Sequence[CorrectionStatus]) -> None:
    for refusal in complaints:
        complain(f"line {refusal.line}: {refusal.error}")
    num_before = sum(one.is_duplicate for one in receipts)
    named = f" as {receipts[0].request_id}" if len(receipts) == 1 else ""
    before = f", {num_before} of them sent before" if num_before else ""
    refused = f", refused {len(complaints)}" if complaints else ""
    say(f"sent {counted(len(receipts), 'correction')}{named} to the HTTP API{before}{refused}")
    for one in found:
        reason = f"; {one.reason}" if one.reason else ""
        (complain if one.state in REFUSED else say)(f"{one.request_id}: {one.state}, {one.meaning}{reason}")
