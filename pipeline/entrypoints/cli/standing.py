"""The command that says where everything stands: lineages, what their workers do, what waits for a person."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.local import LocalStack
from pipeline.bootstrap import Stores, stores
from pipeline.domain.errors import InvalidInput, Unavailable
from pipeline.domain.formats.counting import counted
from pipeline.domain.ledger.upkeep import Upkeep
from pipeline.domain.lineages import Lineage
from pipeline.domain.review.approvals import shown_actor
from pipeline.entrypoints.console import (
    JsonOption,
    LineageOption,
    complain,
    exits_clearly,
    out,
    print_json,
    print_rows,
    say,
)
from pipeline.entrypoints.local_settings import current_settings, page_of
from pipeline.entrypoints.processes import review_page, told_of

if TYPE_CHECKING:
    from pipeline.config import Settings

SHOWN_WAITING = 3
"""Candidates of a lineage that are listed; approving one approves those below it."""
WATCH_SECONDS = 1.0
WORDS = {
    "received": "queued",
    "claimed": "being edited",
    "snapshotted": "in the head",
}
"""What people read for the status of an edit; other statuses are words already."""


def add_commands(app: typer.Typer) -> None:
    """Register the command of this file."""
    app.command()(exits_clearly(status))


def status(
    lineage: LineageOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where every lineage stands: edits, head, champion, what its worker does, what waits for approval and where.

    Example: corrigenda status --watch
    """
    if watch and as_json:
        raise InvalidInput("expected either --watch or --json, got both")
    settings = current_settings()
    if as_json:
        print_json(_standing(settings, lineage).as_json())
    elif watch:
        _watch(settings, lineage)
    else:
        _show(settings, _standing(settings, lineage))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Standing:
    lineages: Sequence[Mapping[str, Any]]
    intake: Mapping[str, int]
    owed: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"lineages": list(self.lineages), "intake": dict(self.intake), "side_effects": dict(self.owed)}


def _standing(settings: Settings, lineage: str | None) -> _Standing:
    kept = stores(settings)
    chosen = [kept.lineages.lineage(lineage)] if lineage else kept.lineages.lineages()
    activities = kept.leases.activities()
    rows = []
    for found in chosen:
        activity = activities.get(found.settings.name)
        rows.append(
            {
                "lineage": found.settings.name,
                "head": found.head_seq,
                "champion": found.champion_seq,
                "hold": found.hold,
                "edits": dict(kept.lineages.counts(found.settings.name)),
                "doing": activity.sentence() if activity else None,
                "activity": asdict(activity) if activity else None,
                "waiting": _waiting(settings, kept, found),
                "newest_version": _newest_version(settings, kept, found.settings.name),
                "prior_strength": found.prior_strength,
                "made_with_strength": found.settings.editor.prior_strength,
                "upkeep": asdict(found.upkeep),
                "ledger": asdict(kept.history.ledger(found.settings.name)),
            }
        )
    return _Standing(lineages=rows, intake=kept.history.intake_counts(), owed=kept.outbox.counts())


def _waiting(settings: Settings, kept: Stores, found: Lineage) -> list[dict[str, Any]]:
    name = found.settings.name
    candidates = kept.snapshots.waiting(name, above_seq=found.champion_seq, limit=SHOWN_WAITING)
    return [
        {
            "seq": snapshot.seq,
            "version": snapshot.registry_version,
            "since": snapshot.created_at,
            "link": page_of(settings, name, snapshot.registry_version),
            "review": review_page(LocalStack(settings.home), name, snapshot.seq),
        }
        for snapshot in candidates
    ]


def _newest_version(settings: Settings, kept: Stores, lineage: str) -> dict[str, Any] | None:
    """Return the model version to look at now: the newest candidate's, else the newest; None if there is none."""
    found = kept.snapshots.newest_version(lineage)
    if found is None:
        return None
    page = page_of(settings, lineage, found.registry_version)
    return {"seq": found.seq, "version": found.registry_version, "status": found.status, "link": page}


def _show(settings: Settings, standing: _Standing) -> None:
    columns = {"lineage": "lineage", "head": "head", "champion": "champion", "edits": "edits", "doing": "now"}
    if any(row["hold"] for row in standing.lineages):
        columns["hold"] = "hold"
    shown = [
        dict(row)
        | {
            "champion": row["champion"] or "base",
            "edits": _edits(row["edits"]),
            "doing": row["doing"] or _idle(row),
        }
        for row in standing.lineages
    ]
    empty = "no lineage yet; make one with `corrigenda lineage create NAME`"
    print_rows(shown, columns, as_json=False, empty=empty, whole=("lineage",))
    for row in standing.lineages:
        for line in _ledger_lines(row):
            say(f"{row['lineage']}: {line}")
        for waiting in row["waiting"]:
            what = f"{row['lineage']}: snapshot {waiting['seq']} waits for approval since {_time(waiting['since'])}"
            say(f"{what}: {waiting['link'] or 'not in MLflow yet'}")
            if waiting["review"]:
                say(f"  or {waiting['review']}")
        newest = row["newest_version"]
        if newest and newest["link"] not in [None, *(waiting["link"] for waiting in row["waiting"])]:
            say(f"{row['lineage']}: newest version, of snapshot {newest['seq']} ({newest['status']}): {newest['link']}")
    intake = standing.intake
    duplicates = counted(intake["duplicates"], "duplicate")
    say(f"intake: {intake['received']} received, {duplicates}, {intake['refused']} refused")
    for process in (one for one in LocalStack(settings.home).status() if one.restarts or one.state != "running"):
        say(f"process: {told_of(process)}")
    owed = standing.owed
    again = "; see `corrigenda outbox list`" if owed["given_up"] else ""
    failing = f" ({owed['failing']} fail: `corrigenda outbox list --failing`)" if owed["failing"] else ""
    say(f"side effects: {owed['owed']} owed{failing}, {owed['given_up']} given up{again}")


def _ledger_lines(row: Mapping[str, Any]) -> list[str]:
    """Return how a lineage's ledger stands, where that is not as it was made, and what is owed to it."""
    ledger, upkeep = row["ledger"], Upkeep(**row["upkeep"])
    parts = []
    if row["prior_strength"] != row["made_with_strength"]:
        parts.append(f"prior strength {row['prior_strength']:.4g} ({row['made_with_strength']:.4g} when it was made)")
    if ledger["rekeyed_seq"] is not None:
        since = counted(ledger["edits_since"], "edit")
        parts.append(f"keys read again in snapshot {ledger['rekeyed_seq']}, {since} ago")
    if upkeep != Upkeep():
        parts.append(f"upkeep: {upkeep.words()}")
    lines = ["; ".join(parts)] if parts else []
    for owed in ledger["owed"]:
        why = f": {owed['reason']}" if owed["reason"] else ""
        lines.append(
            f"owed since {_time(owed['asked_at'])}: {owed['what']}, asked by {shown_actor(owed['actor'])}{why}"
        )
    return lines


def _watch(settings: Settings, lineage: str | None) -> None:
    """Show it again and again: in place on a terminal, and in a pipe whenever it has changed.

    A database that is away is told like anything else, and looked for again.
    """
    before = ""
    if not out.is_terminal:
        while True:
            try:
                standing = _standing(settings, lineage)
                if (told := str(standing)) != before:
                    _show(settings, standing)
            except Unavailable as error:
                if (told := str(error)) != before:
                    complain(told)
            before = told
            time.sleep(WATCH_SECONDS)
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    # A console of its own: everything that `out` prints while it shows a live picture has that picture above it.
    with Live(console=Console(highlight=False), auto_refresh=False, transient=False) as live:
        while True:
            live.update(Text.from_ansi(_picture(settings, lineage)), refresh=True)
            time.sleep(WATCH_SECONDS)


def _picture(settings: Settings, lineage: str | None) -> str:
    """Return what a terminal shows now, coloured."""
    with out.capture() as captured:
        try:
            _show(settings, _standing(settings, lineage))
        except Unavailable as error:
            say(f"{error}; looking again")
    return captured.get().rstrip("\n")


def _edits(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {WORDS.get(name, name)}" for name, number in counts.items()) or "none"


def _idle(row: Mapping[str, Any]) -> str:
    if row["edits"].get("received"):
        return "held" if row["hold"] else "queued; no worker has taken it yet"
    return "waiting for approval" if row["waiting"] else "nothing to do"


def _time(at: datetime) -> str:
    """Return a time of today without its day, and any other with it: a candidate may wait for weeks."""
    here, today = at.astimezone(), datetime.now().astimezone().date()
    return here.strftime("%H:%M:%S" if here.date() == today else "%Y-%m-%d %H:%M:%S")
