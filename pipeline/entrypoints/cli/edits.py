"""Commands about corrections: send them and follow them."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_args
from uuid import uuid4

import typer

from infra.local import LocalStack
from pipeline.bootstrap import Stores, publisher, retrier, stores
from pipeline.domain.approvals import shown_actor
from pipeline.domain.errors import InvalidInput, Unavailable, UnknownLineage
from pipeline.domain.formats.json_lines import json_lines
from pipeline.domain.gates import bound_text
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.prompts import Role
from pipeline.domain.rank_api import EditorIdentity
from pipeline.domain.snapshots import Snapshot
from pipeline.entrypoints.console import (
    MAX_ROWS,
    ExitCode,
    JsonOption,
    LineageOption,
    ReasonOption,
    complain,
    exits_clearly,
    print_json,
    print_record,
    print_rows,
    say,
)
from pipeline.entrypoints.local_settings import cli_actor, current_settings
from pipeline.entrypoints.processes import told_of
from pipeline.services.submission import submit as submit_request

ROLES = get_args(Role)
MESSAGE_HELP = 'The last is the user\'s; "system:" or "assistant:" before the text names another speaker.'
STATES = (
    *EditStatus,
    "queued",
    "editing",
    "candidate",
    "candidate, removal pending",
    "live",
    "live, removal pending",
    "rolled back",
    "gone",
)
"""What an edit can be in the view `edit_history`."""


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    for command in (submit, status, edits, show, retry):
        app.command()(exits_clearly(command))


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
    request_id: Annotated[str | None, typer.Option(help="Your own id; one is made up otherwise.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send one correction, or a file of them, to the topic.

    Example: corrigenda submit -l demo --prompt "The capital of Australia is" --target Canberra

    As a chat: corrigenda submit -l demo --message "What is Australia's capital?" --answer "It is Canberra."
    """
    settings = current_settings()
    kept = stores(settings)
    given = {
        "prompt": prompt,
        "messages": [_turn(text) for text in message] if message else None,
        "target_new": target,
        "answer": answer,
        "question": question,
        "subject": subject,
        "aliases": alias,
        "relation": relation,
        "rephrases": rephrase,
        "request_id": request_id,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if file is not None and fields:
        raise InvalidInput("expected either a JSONL file or a correction in options, got both")
    refused: list[dict[str, Any]] = []
    documents = [_document(fields)] if file is None else _documents(file, refused)
    if lineage or any("lineage" not in document for _, document in documents):
        name = lineage_name(kept, lineage)
        documents = [(number, {"lineage": name} | document) for number, document in documents]
    known = {found.settings.name for found in kept.lineages.lineages()}
    sent: list[str] = []
    with publisher(settings) as send:
        for number, document in documents:
            try:
                _check_known(document.get("lineage"), known)
                sent.append(submit_request(send, settings.requests_topic, document).request_id)
            except InvalidInput as error:
                refused.append({"line": number, "error": str(error)})
            except Unavailable as error:
                raise Unavailable(f"{error}; {_how_far(sent, document, len(documents))}") from error
    num_all = len(sent) + len(refused)
    refused.sort(key=lambda refusal: refusal["line"])
    if as_json:
        print_json({"sent": sent, "refused": refused})
    else:
        for refusal in refused:
            complain(f"line {refusal['line']}: {refusal['error']}" if file else f"corrigenda: {refusal['error']}")
        say(f"sent {len(sent)} of {num_all} to {settings.requests_topic}, refused {len(refused)}")
    if refused:
        raise typer.Exit(ExitCode.usage)


def _check_known(lineage: object, known: Container[str]) -> None:
    """Refuse what intake would refuse because of what the database holds; the rest is the wire contract's."""
    if isinstance(lineage, str) and lineage not in known:
        raise UnknownLineage(f"expected the name of a lineage, got {lineage!r:.120}", lineage=lineage)


def _how_far(sent: Sequence[str], document: Mapping[str, Any], num_all: int) -> str:
    again = (
        "what is there already counts as a duplicate" if num_all > 1 else f"with --request-id {document['request_id']}"
    )
    return f"{len(sent)} of {num_all} are sent, one may be; sending again is safe: {again}"


def status(lineage: LineageOption = None, as_json: JsonOption = False) -> None:
    """Show where every lineage stands: edits by status, head, champion, hold.

    Example: corrigenda status
    """
    settings = current_settings()
    kept = stores(settings)
    chosen = [kept.lineages.lineage(lineage)] if lineage else kept.lineages.lineages()
    rows: list[dict[str, Any]] = [
        {
            "lineage": found.settings.name,
            "head": found.head_seq,
            "champion": found.champion_seq,
            "hold": found.hold,
            "edits": dict(kept.lineages.counts(found.settings.name)),
        }
        for found in chosen
    ]
    counts, owed = kept.history.intake_counts(), kept.outbox.counts()
    if as_json:
        print_json({"lineages": rows, "intake": dict(counts), "side_effects": dict(owed)})
        return
    columns = {"lineage": "lineage", "head": "head", "champion": "champion", "edits": "edits", "hold": "hold"}
    shown = [row | {"edits": _counted(row["edits"]) or "none"} for row in rows]
    print_rows(shown, columns, as_json=False, empty="no lineage yet; make one with `corrigenda lineage create`")
    say("intake: " + _counted(counts))
    again = "; see `corrigenda outbox list`" if owed["given_up"] else ""
    for process in (one for one in LocalStack(settings.home).status() if one.restarts or one.state != "running"):
        say(f"process: {told_of(process)}")
    say(f"side effects: {owed['owed']} owed, {owed['given_up']} given up{again}")


def edits(
    lineage: LineageOption = None,
    status: Annotated[str | None, typer.Option(help="Only edits with this status or state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Most rows.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """List edits with their state.

    Example: corrigenda edits --status rejected
    """
    if status is not None and status not in STATES:
        known = ", ".join(repr(str(state)) for state in STATES)
        raise InvalidInput(f"expected a status, one of {known}; got {status!r:.80}")
    kept = stores(current_settings())
    rows = kept.history.edits(lineage_name(kept, lineage), status=status, limit=limit)
    columns = {
        "request_id": "request",
        "prompt": "prompt",
        "target_new": "target",
        "state": "state",
        "snapshot_seq": "in",
        "reason": "reason",
    }
    print_rows(rows, columns, as_json=as_json, empty="no edits", whole=("snapshot_seq",))


def show(
    ref: Annotated[str, typer.Argument(help="An edit id, a request id, or a snapshot: its seq, head or champion.")],
    lineage: LineageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one edit's whole history, or one snapshot with its gate report.

    Example: corrigenda show fact-pope
    """
    kept = stores(current_settings())
    name = lineage_name(kept, lineage)
    if ref.isdigit() or ref in ("head", "champion"):
        snapshot = kept.snapshots.snapshot(name, ref)
        print_snapshot(snapshot, kept.snapshots.report(snapshot.gate_report_id), as_json=as_json)
        return
    row = dict(kept.history.edit(name, ref)) | {"editor": asdict(kept.lineages.lineage(name).settings.editor_identity)}
    events = row.pop("events", ())
    if as_json:
        print_json(row | {"events": events})
        return
    shown = row | {"editor": editor_line(row["editor"])}
    for key in ("approved_by", "removal_asked_by"):
        shown[key] = shown_actor(row[key]) if row[key] else None
    shown["messages"] = [f"{turn['role']}: {turn['content']}" for turn in row["messages"]]
    print_record({key: value for key, value in shown.items() if value is not None and value != []}, as_json=False)
    say()
    columns = {"seq": "line", "at": "at", "actor": "actor", "action": "action"}
    lines = [dict(event) | {"actor": shown_actor(event["actor"])} for event in events]
    print_rows(lines, columns, as_json=False, empty="no audit lines", whole=("seq", "at", "action"))


def retry(
    edits: Annotated[list[str] | None, typer.Argument(help="Edit ids or request ids of dead edits.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead edit of the lineage.")] = False,
    because: Annotated[
        str | None, typer.Option(help="With --all: only edits whose own reason contains this text.")
    ] = None,
    lineage: LineageOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Try dead edits again, with all their attempts, once what they died of is mended; asking twice does no harm.

    Example: corrigenda retry fact-pope --reason "the ranks have memory now"

    All that died of one thing: corrigenda retry --all --because "out of memory"
    """
    if bool(edits) == every or (because is not None and not every):
        raise InvalidInput("expected the ids of edits, or --all with or without --because; got neither, or both")
    settings = current_settings()
    name = lineage_name(stores(settings), lineage)
    again, actor = retrier(settings), cli_actor()
    if edits:
        done = again.retry(name, edits, actor=actor, reason=reason)
    else:
        done = again.retry_all(name, because=because or "", actor=actor, reason=reason)
    if as_json:
        print_json({"lineage": name, "retried": list(done.edit_ids), "left": dict(done.left)})
        return
    for edit_id, found in done.left.items():
        say(f"left as it is: {edit_id}, which is {found}")
    say(f"{len(done.edit_ids)} dead edits of {name} wait to be tried again")


def lineage_name(kept: Stores, given: str | None) -> str:
    """Return the lineage that is meant: the one given, or the only one there is.

    Raises:
        InvalidInput: if none is given and there is not exactly one.
    """
    if given:
        return kept.lineages.lineage(given).settings.name
    names = [found.settings.name for found in kept.lineages.lineages()]
    if len(names) != 1:
        raise InvalidInput(f"expected --lineage, got none and there are {len(names)}: {', '.join(names) or 'none'}")
    return names[0]


def print_snapshot(snapshot: Snapshot, report: Mapping[str, Any], *, as_json: bool) -> None:
    """Show a snapshot and the rows of its gate report."""
    record = asdict(snapshot)
    if as_json:
        print_json(record | {"report": report})
        return
    record["delta"] = f"{snapshot.delta.num_bytes} bytes, {snapshot.delta.digest[:12]}"
    record["editor"] = editor_line(report.get("editor"))
    record["accumulator"] = snapshot.accumulator.digest[:12] if snapshot.accumulator else None
    print_record(record, as_json=False)
    say()
    columns = {"metric": "metric", "value": "value", "num_measured": "of", "bound": "bound"}
    columns |= {"against": "against", "verdict": "verdict"}
    rows = [row | {"bound": bound_text(row)} for row in report.get("rows", [])]
    print_rows(rows, columns, as_json=False, empty="no gate rows")


def editor_line(editor: Mapping[str, Any] | None) -> str | None:
    """Return the editor that a report names, with its digest; None if the report is older than that."""
    return f"{EditorIdentity(**editor)}, solver {editor['solver']}" if editor else None


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _document(fields: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return a correction in options as a line of a file; what else it needs is the wire contract's."""
    if not fields.keys() & {"prompt", "messages"} or not fields.keys() & {"target_new", "answer"}:
        raise InvalidInput("expected a JSONL file, or --prompt (or --message) and --target (or --answer); got less")
    made_up = {"request_id": f"cli-{uuid4()}", "source": "cli", "occurred_at": datetime.now(UTC).isoformat()}
    return 1, made_up | dict(fields)


def _turn(text: str) -> dict[str, str]:
    """Return a turn of a chat; the user says what nobody else is named for."""
    role, found, said = text.partition(":")
    return {"role": role, "content": said.strip()} if found and role in ROLES else {"role": "user", "content": text}


def _documents(file: Path, refused: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Return the corrections of a file by line; what one cannot hold is added to the refusals."""
    try:
        content = _standard_input() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"expected a readable JSONL file, got {file}: {error.strerror}") from error
    return list(
        json_lines(content, file, on_refused=lambda number, why: refused.append({"line": number, "error": why}))
    )


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InvalidInput("expected JSONL on standard input, which is closed")
    return sys.stdin.buffer.read()
