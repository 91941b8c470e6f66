"""Commands about corrections that were sent: list them, show one, try it again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.bootstrap import retrier, stores
from pipeline.choosing import lineage_name
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.counting import counted
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.review.approvals import shown_actor
from pipeline.entrypoints.console import (
    MAX_ROWS,
    JsonOption,
    LineageOption,
    ReasonOption,
    exits_clearly,
    print_json,
    print_record,
    print_rows,
    say,
)
from pipeline.entrypoints.local_settings import cli_actor, current_settings, page_of
from pipeline.entrypoints.reports import editor_line, parted_score, print_answers, print_others, print_snapshot

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
FIRST = (
    "request_id",
    "state",
    "prompt",
    "messages",
    "question",
    "target_new",
    "answer",
    "subject",
    "aliases",
    "relation",
    "submitted_by",
    "received_at",
    "snapshot_seq",
    "reason",
    "gate_reason",
    "approved_by",
    "approved_at",
    "approval_reason",
)
"""What `show` says of an edit before its answers; ids and the rest come after them."""


MAX_BROUGHT = 100
"""Edits, and decisions, of one snapshot that `show` lists; `--json` has the measurements of all of them."""


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    for command in (edits, show, retry):
        app.command()(exits_clearly(command))


def edits(
    lineage: LineageOption = None,
    status: Annotated[str | None, typer.Option(help="Only edits with this status or state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Most rows; the newest are shown.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """List edits with their state, the newest last.

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
    print_rows(rows, columns, as_json=as_json, empty="no edits", whole=("snapshot_seq",), below="reason")
    if not as_json and len(rows) == limit:
        say(f"these are the newest {limit:,}; --limit shows more")


def show(
    ref: Annotated[str, typer.Argument(help="An edit id, a request id, or a snapshot: its seq, head or champion.")],
    lineage: LineageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one edit's whole history, or one snapshot with its gate report.

    Example: corrigenda show fact-pope
    """
    settings = current_settings()
    kept = stores(settings)
    name = lineage_name(kept, lineage)
    if ref.isdigit() or ref in ("head", "champion"):
        snapshot = kept.snapshots.snapshot(name, ref)
        report = kept.snapshots.report(snapshot.gate_report_id)
        if as_json:
            print_json(asdict(snapshot) | {"report": report})
            return
        print_snapshot(
            snapshot,
            report,
            page=page_of(settings, name, snapshot.registry_version),
            edits=kept.api.pages.brought(name, snapshot.seq, limit=MAX_BROUGHT),
            decisions=kept.api.pages.decisions(snapshot.snapshot_id, limit=MAX_BROUGHT),
            around=kept.api.pages.surroundings(name, snapshot.seq),
        )
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
    score, others = parted_score(shown.pop("gate_score"))
    shown = {key: value for key, value in shown.items() if value is not None and value != []}
    page = page_of(settings, name, row["registry_version"])
    first = {key: shown.pop(key) for key in FIRST if key in shown} | ({"page": page} if page else {})
    print_record(first, as_json=False)
    print_answers(row, score)
    print_others(others)
    say()
    print_record(shown, as_json=False)
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
    num = len(done.edit_ids)
    say(f"{counted(num, 'dead edit')} of {name} {'waits' if num == 1 else 'wait'} to be tried again")
