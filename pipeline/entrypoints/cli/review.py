"""Commands that decide about snapshots, through the same service as requests in the registry."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.bootstrap import review_service, stores
from pipeline.choosing import lineage_name
from pipeline.domain.review.approvals import Channel, Decision, Outcome
from pipeline.entrypoints.console import (
    ExitCode,
    JsonOption,
    LineageOption,
    ReasonOption,
    complain,
    exits_clearly,
    print_json,
    print_rows,
    say,
)
from pipeline.entrypoints.local_settings import current_settings, deciding_actor, page_of, reviewing_settings

SnapshotArgument = Annotated[str, typer.Argument(help="A snapshot: its seq, its id, or head.")]
DigestOption = Annotated[
    str | None, typer.Option("--digest", help="The digest you looked at; refused if the snapshot has another.")
]


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    for command in (snapshots, approve, reject, revert, rollback):
        app.command()(exits_clearly(command))


def snapshots(lineage: LineageOption = None, as_json: JsonOption = False) -> None:
    """List the snapshots of a lineage, oldest first; the champion is marked.

    Example: corrigenda snapshots -l demo
    """
    settings = current_settings()
    kept = stores(settings)
    found = kept.lineages.lineage(lineage_name(kept, lineage))
    rows = [
        asdict(one)
        | {
            "champion": one.snapshot_id == found.champion_id,
            "page": page_of(settings, one.lineage, one.registry_version),
        }
        for one in kept.snapshots.snapshots(found.settings.name)
    ]
    marks = {True: "*", False: ""}
    short = [row | {"champion": marks[row["champion"]], "digest": row["digest"][:12]} for row in rows]
    columns = {
        "champion": "",
        "seq": "seq",
        "status": "status",
        "registry_version": "model version",
        "digest": "digest",
        "created_at": "created",
    }
    print_rows(rows if as_json else short, columns, as_json=as_json, empty="no snapshots yet")
    if not as_json and rows and (newest := rows[-1]["page"]):
        say(f"the newest in MLflow: {newest}")


def approve(
    snapshot: SnapshotArgument,
    lineage: LineageOption = None,
    reason: ReasonOption = "",
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a snapshot, and what it is built on; it becomes the champion.

    Example: corrigenda approve head --reason "checked the report"
    """
    of, outcome = _decided(Decision.approved, snapshot, lineage, reason, digest)
    _tell(outcome, f"approved {of}; it is the champion", as_json=as_json)


def reject(
    snapshot: SnapshotArgument,
    lineage: LineageOption = None,
    reason: ReasonOption = "",
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reject a candidate; the head is made anew without its edits.

    Example: corrigenda reject head --reason "wrong source"
    """
    of, outcome = _decided(Decision.rejected, snapshot, lineage, reason, digest)
    _tell(outcome, f"rejected {of}; what it brought in is being taken out of the head", as_json=as_json)


def revert(
    edits: Annotated[list[str], typer.Argument(help="Edit ids or request ids.")],
    lineage: LineageOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Take edits out again: makes a new candidate without them.

    Example: corrigenda revert fact-pope --reason "retracted"
    """
    settings = reviewing_settings()
    kept = stores(settings)
    name = lineage_name(kept, lineage)
    removals = review_service(settings).revert(name, edits, actor=deciding_actor(kept), reason=reason)
    if as_json:
        print_json({"lineage": name, "edits": edits, "removals": list(removals)})
    else:
        say(f"owed: a candidate of {name} without {', '.join(edits)}; approve it to make it live")


def rollback(
    snapshot: Annotated[str, typer.Argument(help="The approved snapshot to go back to: its seq or id.")],
    lineage: LineageOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Move the champion back to an approved ancestor at once; the lineage is held until a person acts.

    Example: corrigenda rollback 3 --reason "users complain about answers"
    """
    of, outcome = _decided(Decision.rolled_back, snapshot, lineage, reason, None)
    held = "the lineage is held until somebody reverts, approves again or resumes: see `corrigenda status`"
    _tell(outcome, f"the champion is {of} again; {held}", as_json=as_json)


def _decided(
    decision: Decision, snapshot: str, lineage: str | None, reason: str, digest: str | None
) -> tuple[str, Outcome]:
    """Decide, and return the snapshot in words too: the head may be another one a moment later."""
    settings = reviewing_settings()
    kept = stores(settings)
    name = lineage_name(kept, lineage)
    seq = kept.snapshots.snapshot(name, snapshot).seq
    outcome = review_service(settings).decide(
        name,
        str(seq),
        decision,
        actor=deciding_actor(kept),
        channel=Channel.cli,
        reason=reason,
        expected_digest=digest,
    )
    return f"snapshot {seq} of {name}", outcome


def _tell(outcome: Outcome, done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(outcome))
    elif outcome.awaits_others:
        say(f"noted: {outcome.awaited}")
    elif outcome.is_accepted:
        say(done)
    else:
        complain(f"refused: {outcome.reason}")
    if not outcome.is_accepted:
        raise typer.Exit(ExitCode.failed)
