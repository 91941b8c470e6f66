"""Sends corrections of the command line over the HTTP API, where one is named: no broker or database is needed then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer

from pipeline.domain.errors import InvalidInput, Misconfigured, Unavailable
from pipeline.domain.formats.counting import counted
from pipeline.entrypoints.console import ExitCode, complain, print_json, say
from pipeline.entrypoints.correction_files import SOURCE, Line, Refusal
from pipeline.entrypoints.signs import SignOfLife

if TYPE_CHECKING:
    from pipeline.client import CorrectionStatus, CorrigendaClient, Receipt
    from pipeline.config import Settings

MAX_IN_A_CALL = 1_000
REFUSED = frozenset({"rejected", "dead", "refused", "not sent"})
SETTLED = REFUSED | {"candidate", "live", "superseded", "gone", "rolled back"}
"""States in which a correction has its verdict."""


def api_of(settings: Settings) -> tuple[str, str] | None:
    """Return the address of the API that the settings name, and the token for it; None if they name none.

    Raises:
        Misconfigured: if there is no token for it, or others may read the token's file.
    """
    if not settings.api_url:
        return None
    from pipeline.adapters.people import token_from

    token = settings.api_token.get_secret_value()
    if not token and settings.api_token_file is not None:
        token = token_from(settings.api_token_file)
    if not token:
        raise Misconfigured("expected CORRIGENDA_API_TOKEN or CORRIGENDA_API_TOKEN_FILE beside CORRIGENDA_API_URL")
    return settings.api_url, token


def submit_over_http(
    api: tuple[str, str],
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
        api: its address, and a token.
        lines: corrections; what they leave out, the API fills in.
        refused: lines that hold none.
        lineage: of corrections that name none; None for the only one there is.
        is_strict: whether nothing is sent if a line is refused here.
        wait_seconds: how long to wait for verdicts at most; None for not at all.
        as_json: whether to print JSON.

    Raises:
        typer.Exit: 2 if one was refused as it is, 1 if its gate refused one.
        CorrigendaRefused, Unavailable: as the client says, and if there is no verdict in time.
    """
    receipts, complaints = list["Receipt"](), list(refused)
    found: list[CorrectionStatus] = []
    with SignOfLife("sending", is_quiet=as_json) as sign, _client(api, sign.tell) as client:
        if not (is_strict and refused):
            for first in range(0, len(lines), MAX_IN_A_CALL):
                try:
                    _send(client, lines[first : first + MAX_IN_A_CALL], lineage, receipts, complaints)
                except Unavailable as error:
                    raise Unavailable(f"{error}; {_how_far(receipts, lines)}") from error
        if wait_seconds is not None:
            found = _verdicts(client, receipts, wait_seconds, sign.tell)
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
    if late := [one.request_id for one in found if one.state not in SETTLED]:
        raise Unavailable(f"expected a verdict on {', '.join(late[:3])} in time, got none; the same command waits on")


def _client(api: tuple[str, str], tell: Callable[[str], None]) -> CorrigendaClient:
    """Return a client that says when it tries again.

    Raises:
        Misconfigured: if the address or the token cannot be one.
    """
    from pipeline.client import CorrigendaClient

    try:
        return CorrigendaClient(*api, tell=tell)
    except InvalidInput as error:
        raise Misconfigured(f"CORRIGENDA_API_URL and its token: {error}") from error


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


def _how_far(receipts: Sequence[Receipt], lines: Sequence[Line]) -> str:
    """Say what was sent before the API went away; the ids of a file's lines follow from the lines."""
    again = "what is there already is not sent twice"
    if len(lines) == 1:
        again = f"with --request-id {lines[0].document['request_id']}"
    return f"{len(receipts)} of {len(lines)} are sent, others may be; sending again is safe: {again}"


def _verdicts(
    client: CorrigendaClient, receipts: Sequence[Receipt], seconds: int, tell: Callable[[str], None]
) -> list[CorrectionStatus]:
    """Follow corrections one after the other, all of them within the same time."""
    ends, found = time.monotonic() + seconds, list["CorrectionStatus"]()

    def waiting(standing: CorrectionStatus) -> None:
        left = counted(len(receipts) - len(found), "correction")
        tell(f"{left}: {standing.request_id} {standing.state}, {standing.meaning}")

    for one in receipts:
        left = timedelta(seconds=max(ends - time.monotonic(), 0.0))
        found.append(client.wait(one.id, until=SETTLED, timeout=left, tell=waiting))
    return found


def _tell(receipts: Sequence[Receipt], complaints: Sequence[Refusal], found: Sequence[CorrectionStatus]) -> None:
    for refusal in complaints:
        complain(f"line {refusal.line}: {refusal.error}")
    num_before = sum(one.is_duplicate for one in receipts)
    named = f" as {receipts[0].request_id}" if len(receipts) == 1 else ""
    before = f", {num_before} of them sent before" if num_before else ""
    refused = f", refused {len(complaints)}" if complaints else ""
    say(f"sent {counted(len(receipts), 'correction')}{named} to the HTTP API{before}{refused}")
    for one in found:
        why = one.superseded_by or one.reason
        reason = f": {why}" if one.superseded_by else f"; {why}" if why else ""
        where = f" in snapshot {one.snapshot.seq}" if one.snapshot and one.state not in REFUSED else ""
        (complain if one.state in REFUSED else say)(f"{one.request_id}: {one.state}{where}, {one.meaning}{reason}")
