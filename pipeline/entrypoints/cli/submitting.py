"""The command that sends corrections, and may wait until they are edited."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.bootstrap import Stores, publisher, stores
from pipeline.choosing import lineage_name
from pipeline.domain.errors import InvalidInput, Unavailable, UnknownLineage
from pipeline.domain.formats.counting import counted
from pipeline.entrypoints.console import (
    ExitCode,
    JsonOption,
    LineageOption,
    complain,
    exits_clearly,
    print_json,
    say,
)
from pipeline.entrypoints.correction_files import (
    Line,
    Refusal,
    advice,
    correction_in_options,
    corrections_in,
    turn,
    with_lineage,
)
from pipeline.entrypoints.http_submitting import api_of, submit_over_http
from pipeline.entrypoints.local_settings import cli_actor, current_settings, load_settings, page_of
from pipeline.entrypoints.signs import SignOfLife

if TYPE_CHECKING:
    from pipeline.config import Settings

MESSAGE_HELP = 'The last is the user\'s; "system:" or "assistant:" before the text names another speaker.'
POLL_SECONDS = 0.25
"""Least time between two looks at where corrections stand; looks take a tenth of the time at most."""
UNSETTLED = ("received", "claimed", "queued", "editing")
REFUSED = ("rejected", "dead")


def add_commands(app: typer.Typer) -> None:
    """Register the command of this file."""
    app.command()(exits_clearly(submit, has_events=False))


def submit(
    file: Annotated[
        Path | None, typer.Argument(help="JSONL file of corrections (edits.requests.v1); - reads stdin.")
    ] = None,
    lineage: LineageOption = None,
    prompt: Annotated[str | None, typer.Option(help="A stem that ends right before the answer.")] = None,
    message: Annotated[
        list[str] | None,
        typer.Option(help="A turn of the chat that went wrong, in place of a prompt; repeatable. " + MESSAGE_HELP),
    ] = None,
    target: Annotated[str | None, typer.Option(help="What the model has to say.")] = None,
    answer: Annotated[str | None, typer.Option(help="A right answer, as a sentence with the target in it.")] = None,
    question: Annotated[str | None, typer.Option(help="The fact as a question, as people ask it in a chat.")] = None,
    subject: Annotated[str | None, typer.Option(help="The entity the fact is about.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name of the subject; repeatable.")] = None,
    relation: Annotated[str | None, typer.Option(help="The relation that is corrected.")] = None,
    rephrase: Annotated[list[str] | None, typer.Option(help="Another stem with the same answer; repeatable.")] = None,
    neighbour: Annotated[
        list[str] | None,
        typer.Option("--neighbour", "--neighbor", help="A stem whose answer has to stay as it is; repeatable."),
    ] = None,
    request_id: Annotated[str | None, typer.Option(help="Your own id; one is made up otherwise.")] = None,
    submitter: Annotated[
        str | None, typer.Option(help="Who made the correction; the user of this process if left out.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Send nothing if any line is refused.")] = False,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until every correction has its verdict.")] = False,
    timeout: Annotated[int, typer.Option(min=1, help="Most seconds to wait.")] = 1800,
    as_json: JsonOption = False,
) -> None:
    """Send one correction, or a file of them, to the topic.

    Where CORRIGENDA_API_URL names an HTTP API they go there, in the name of the token beside it.

    Lines of a file may leave out request_id, occurred_at and lineage. What is no correction is told with its line, the
    others are sent, and the exit status is 2. A line without an id of its own is sent once, however often the file is.

    Example: corrigenda submit -l demo --prompt "The capital of Australia is" --target Canberra --wait

    As a chat: corrigenda submit -l demo --message "What is Australia's capital?" --answer "It is Canberra."
    """
    given = {
        "prompt": prompt,
        "messages": [turn(text) for text in message] if message else None,
        "target_new": target,
        "answer": answer,
        "question": question,
        "subject": subject,
        "aliases": alias,
        "relation": relation,
        "rephrases": rephrase,
        "locality": [{"prompt": text} for text in neighbour] if neighbour else None,
        "request_id": request_id,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if file is not None and fields:
        raise InvalidInput("expected either a JSONL file or a correction in options, got both")
    who = submitter or cli_actor()
    lines, refused = [correction_in_options(fields, who)] if file is None else [], list[Refusal]()
    if file is not None:
        lines, refused = corrections_in(file, who, is_named=submitter is not None)
    api = api_of(load_settings())
    if api is not None:
        submit_over_http(
            api,
            lines,
            refused,
            lineage=lineage,
            is_strict=strict,
            wait_seconds=timeout if wait else None,
            as_json=as_json,
        )
        return
    settings = current_settings()
    kept = stores(settings)
    if lineage or any("lineage" not in line.document for line in lines):
        lines = with_lineage(lines, lineage_name(kept, lineage))
    sending = _checked(kept, lines, refused, settings.max_ahead)
    if not (strict and sending.refused):
        _send(settings, sending)
    if not (wait and as_json):  # what was sent is in the one document that waiting ends with
        _tell(sending, settings.requests_topic, is_file=file is not None, as_json=as_json)
    if sending.sent and file is None and not as_json:
        for sentence in advice(lines[0]):
            say(sentence)
    if wait:
        _wait(kept, settings, sending, seconds=timeout, as_json=as_json)
    if sending.refused:
        raise typer.Exit(ExitCode.usage)


@dataclass(kw_only=True, slots=True)
class _Sending:
    """What becomes of the lines of one command."""

    lines: list[Line]
    """Those that can be edits, in the order of the file."""
    refused: list[Refusal]
    """Those that cannot."""
    repeated: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Line -> lineage and id under which the same was sent before."""
    sent: list[tuple[str, str]] = field(default_factory=list)
    """Lineage and request id of those that the broker has."""


def _checked(kept: Stores, lines: Sequence[Line], refused: Sequence[Refusal], most_ahead: timedelta) -> _Sending:
    """Sort lines into those to send, those that were sent before, and those that can never be edits."""
    from pipeline.domain.contract.wire import parse_message
    from pipeline.domain.edits import too_far_ahead
    from pipeline.services.submission import encoded

    known, now = {found.settings.name for found in kept.lineages.lineages()}, kept.history.now()
    found = _Sending(lines=[], refused=list(refused))
    for line in lines:
        try:
            name = line.document.get("lineage")
            if isinstance(name, str) and name not in known:
                raise UnknownLineage(f"expected the name of a lineage, got {name!r:.120}", lineage=name)
            request = parse_message(encoded(line.document))
            if request.occurred_at - now > most_ahead:  # intake would refuse it, and --wait would wait for it
                raise InvalidInput(f"occurred_at: {too_far_ahead(request.occurred_at, now, most_ahead)}")
        except InvalidInput as error:
            found.refused.append(Refusal(line=line.number, error=str(error)))
        else:
            found.lines.append(line)
    _leave_out_repeated(kept, found)
    found.refused.sort(key=lambda refusal: refusal.line)
    return found


def _leave_out_repeated(kept: Stores, found: _Sending) -> None:
    """Take out lines that were filled in here and sent before: their time would make them another payload."""
    wanted: dict[str, list[str]] = {}
    for line in found.lines:
        if line.is_filled_in:
            wanted.setdefault(line.document["lineage"], []).append(line.document["request_id"])
    recorded = {
        (name, ref): row for name, refs in wanted.items() for ref, row in kept.history.states(name, refs).items()
    }
    seen: dict[tuple[str, str], Mapping[str, Any]] = {}
    lines = []
    for line in found.lines:
        key = (line.document["lineage"], line.document["request_id"])
        row = recorded.get(key, seen.get(key)) if line.is_filled_in else None
        if row is not None and not _says_the_same(line.document, row):
            error = f"expected another request_id or the correction that was sent under it, got {key[1]!r:.120} again"
            found.refused.append(Refusal(line=line.number, error=error))
        elif row is not None:
            found.repeated[line.number] = key
        else:
            lines.append(line)
        seen.setdefault(key, line.document)
    found.lines = lines


def _says_the_same(document: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    said = {name: str(document[name]).strip() for name in ("prompt", "target_new") if document.get(name)}
    return all(str(row.get(name) or "").strip() == text for name, text in said.items())


def _send(settings: Settings, sending: _Sending) -> None:
    from pipeline.services.submission import submit as submit_request

    with publisher(settings) as send:
        for line in sending.lines:
            try:
                request = submit_request(send, settings.requests_topic, line.document)
            except InvalidInput as error:
                sending.refused.append(Refusal(line=line.number, error=str(error)))
            except Unavailable as error:
                raise Unavailable(f"{error}; {_how_far(sending, line)}") from error
            else:
                sending.sent.append((request.lineage, request.request_id))


def _how_far(sending: _Sending, line: Line) -> str:
    num_all = len(sending.lines)
    again = "what is there already is not sent twice"
    if num_all == 1:
        again = f"with --request-id {line.document['request_id']}"
    return f"{len(sending.sent)} of {num_all} are sent, one may be; sending again is safe: {again}"


def _tell(sending: _Sending, topic: str, *, is_file: bool, as_json: bool) -> None:
    ids = [request_id for _, request_id in sending.sent]
    if as_json:
        repeated = [{"line": number, "request_id": ref} for number, (_, ref) in sending.repeated.items()]
        print_json({"sent": ids, "refused": [asdict(one) for one in sending.refused], "sent_before": repeated})
        return
    for refusal in sending.refused:
        complain(f"line {refusal.line}: {refusal.error}" if is_file else f"corrigenda: {refusal.error}")
    named = f" as {ids[0]}" if len(ids) == 1 else ""
    parts = [f"sent {counted(len(ids), 'correction')}{named} to {topic}"]
    parts += [f"refused {len(sending.refused)}"] if sending.refused else []
    parts += [f"{len(sending.repeated)} sent before"] if sending.repeated else []
    parts += ["none is sent, as --strict asks"] if sending.lines and not sending.sent else []
    say(", ".join(parts))


def _wait(kept: Stores, settings: Settings, sending: _Sending, *, seconds: int, as_json: bool) -> None:
    """Follow the corrections until each has its verdict, and show it.

    Raises:
        typer.Exit: with 1 if one was refused by its gate or gave up.
        Unavailable: if that takes longer than is waited.
    """
    by_lineage: dict[str, list[str]] = {}
    for name, request_id in dict.fromkeys([*sending.sent, *sending.repeated.values()]):
        by_lineage.setdefault(name, []).append(request_id)
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + seconds
    try:
        with SignOfLife("on its way to intake", is_quiet=as_json or not by_lineage) as sign:
            for name, ids in by_lineage.items():
                rows += _until_settled(kept, name, ids, deadline, sign.tell)
    except KeyboardInterrupt:
        complain("no longer waiting; it goes on: `corrigenda status --watch` says how far it is")
        raise
    for row in rows:
        row["link"] = page_of(settings, row["lineage"], row["registry_version"])
    if as_json:
        refusals = [asdict(one) for one in sending.refused]
        print_json({"sent": [ref for _, ref in sending.sent], "refused": refusals, "edits": rows})
    for row in [] if as_json else rows:
        (complain if row["state"] in REFUSED else say)(_verdict(row))
    if any(row["state"] in REFUSED for row in rows):
        raise typer.Exit(ExitCode.failed)


def _until_settled(
    kept: Stores, name: str, ids: Sequence[str], deadline: float, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    while True:
        began = time.monotonic()
        found = kept.history.states(name, ids)
        waiting = [ref for ref in ids if ref not in found or _is_on_its_way(found[ref])]
        if not waiting:
            return [dict(found[ref]) | {"lineage": name} for ref in ids]
        hold = kept.lineages.lineage(name).hold
        if hold is not None:
            raise Unavailable(f"lineage {name} is held: {hold}; see `corrigenda lineage resume`", lineage=name)
        if time.monotonic() > deadline:
            raise Unavailable(
                f"expected a verdict on {', '.join(waiting[:3])} in time, got none; `corrigenda status` says what is "
                "done, `corrigenda dead-letters list` what can never be an edit",
                lineage=name,
            )
        tell(_sign(kept, name, found, waiting))
        time.sleep(max(POLL_SECONDS, 9 * (time.monotonic() - began)))


def _is_on_its_way(row: Mapping[str, Any]) -> bool:
    """Return whether a correction has no verdict yet, or a candidate that is not in MLflow yet."""
    return row["state"] in UNSETTLED or (row["state"] == "candidate" and row["registry_version"] is None)


def _sign(kept: Stores, name: str, found: Mapping[str, Mapping[str, Any]], waiting: Sequence[str]) -> str:
    of = f"{counted(len(waiting), 'correction')}: " if len(waiting) > 1 else ""
    rows = [found[ref] for ref in waiting if ref in found]
    if not rows:
        return f"{of}on its way to intake" if not of else f"{of}on their way to intake"
    if all(row["state"] == "candidate" for row in rows):
        return f"{of}candidate; being registered in MLflow"
    activity = kept.leases.activities().get(name)
    return f"{of}{activity.sentence() if activity else 'queued, no worker has taken it yet'}"


def _verdict(row: Mapping[str, Any]) -> str:
    told = f"{row['request_id']}: {row['state']}"
    if row["snapshot_seq"] is not None and row["state"] not in REFUSED:
        told += f" in snapshot {row['snapshot_seq']}"
    if row["state"] == "candidate" and row["link"]:
        command = f"corrigenda approve {row['snapshot_seq']} -l {row['lineage']}"
        told += f"; look at {row['link']} and approve it there, or with `{command}`"
    return f"{told}; {row['reason']}" if row["reason"] else told
