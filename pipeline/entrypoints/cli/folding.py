"""The command that folds a lineage: all of its facts become part of a new base, on which a new lineage begins.

The facts that are live are learnt into a copy of the pristine base (`editors.folding`), measured by the lineage's own
gates, and left with their provenance in the folder of the new base. The digest of that file is in the audit lines of
both lineages, so nobody can change later what was folded and who had approved it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.local import LocalStack
from pipeline.bootstrap import Stores, stores
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.canonical import canonical_json, sha256_text
from pipeline.domain.formats.counting import counted
from pipeline.domain.gates import GateReport
from pipeline.domain.judging import judge
from pipeline.domain.lineages import Lineage, check_name
from pipeline.domain.measurements import Measurements
from pipeline.domain.rank_api import EditorIdentity, LoadPlan
from pipeline.entrypoints.children import run_module
from pipeline.entrypoints.console import ExitCode, JsonOption, complain, exits_clearly, note, print_json, say
from pipeline.entrypoints.local_settings import cli_actor, current_settings
from pipeline.entrypoints.preparation import DEFAULT_FACTS, make_lineage, prepare_base
from pipeline.entrypoints.processes import start_edit_worker
from pipeline.entrypoints.signs import SignOfLife
from pipeline.entrypoints.stopping import said_at_once

PROVENANCE = "provenance.json"
"""File in the folder of the new base: which edits it holds, from which snapshot, and who approved them."""
MOST_EDITS = 1_000_000
"""More edits than a lineage has."""
TOLD = (
    "edit_id", "request_id", "payload_digest", "subject", "relation", "target_new", "submitted_by", "snapshot_digest",
    "approval_id", "approved_by", "approval_is_claimed", "approved_at",
)  # fmt: skip
"""What the provenance says of each edit, as columns of `edit_history`."""


def add_commands(lineage: typer.Typer) -> None:
    """Register the command among those of lineages."""
    lineage.command("fold")(exits_clearly(lineage_fold))


def lineage_fold(
    name: Annotated[str, typer.Argument(help="The lineage whose live facts are folded.")],
    new: Annotated[str, typer.Argument(help="Name of the lineage that begins on the new base.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the new base; in the home folder if left out.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Edit id or request id of a live fact that is left out; repeatable.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Most rounds over the facts.")] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda or cuda:0.")] = "cpu",
    suite: Annotated[Path, typer.Option(help="JSONL of locality probes.")] = DEFAULT_FACTS / "suite.jsonl",
    text: Annotated[Path, typer.Option(help="Plain text for perplexity.")] = DEFAULT_FACTS / "perplexity.txt",
    prior_text: Annotated[
        list[Path] | None, typer.Option(help="Lines that have to stay, and for the prior; repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train all live facts of a lineage into a copy of its pristine base, and begin a lineage on that.

    It is held to the same gates; where they fail nothing is made. The old lineage stays as it is. The new one has the
    facts in its base, and an empty ledger. A fact that was folded by mistake is left out by folding once more.

    Example: corrigenda lineage fold demo demo-3 --without fact-pope
    """
    settings = current_settings()
    kept = stores(settings)
    _check_new(kept, new)
    lineage = kept.lineages.lineage(name)
    plan, told, left_out = _live(kept, lineage, without or ())
    folder = (out or settings.home / "folds" / new).absolute()
    texts = prior_text or [DEFAULT_FACTS / "prior.txt"]
    edits = kept.queue.edits(name, list(told))
    asked = {
        "plan": asdict(plan),
        "edits": [asdict(edit) for edit in edits],
        "out": str(folder),
        "texts": [str(path.absolute()) for path in texts],
        "device": device,
        "settings": {"num_rounds": rounds} if rounds else {},
    }
    stopped = "stopping: nothing was made; the same command begins again"
    loading = f"loading the base to fold {counted(len(edits), 'fact')} into"
    with SignOfLife(loading, is_quiet=as_json) as sign, said_at_once(stopped, by=note):
        found = _folded(asked, sign)
    report = judge(
        lineage.settings.policy,
        Measurements.from_stored(found["measurements"]),
        editor=EditorIdentity(solver="fold", transform="training from the pristine base"),
    )
    if not report.passed:
        complain(f"refused: the fold of {name} does not pass its gates: {report.summary}; see {folder}")
        raise typer.Exit(ExitCode.failed)
    origin = _origin(lineage, plan, found["digest"], report, told)
    text_of_origin = canonical_json(origin)
    (folder / PROVENANCE).write_text(text_of_origin + "\n", encoding="utf-8")
    stopped = f"stopping: the base in {folder} is made and stays; the same command goes on from there"
    with SignOfLife("measuring the new base for its lineage", is_quiet=as_json), said_at_once(stopped, by=note):
        prepared = prepare_base(folder, suite=suite, text=text, prior_text=texts, task=plan.base.task)
    made = make_lineage(
        kept,
        new,
        prepared,
        batch_size=None,
        policy=lineage.settings.policy,
        approval_policy=lineage.settings.approval_policy,
        origin={**_recorded(origin, text_of_origin), "left_out": left_out},
    )
    if settings.home.is_dir() and LocalStack(settings.home).status():
        start_edit_worker(LocalStack(settings.home), settings, prepared.base)
    if as_json:
        print_json({"lineage": asdict(made), "folder": str(folder), "origin": origin})
        return
    say(f"lineage {new}: base {prepared.base.digest[:12]} in {folder}")
    say(f"{len(told)} facts of {name}, snapshot {lineage.champion_seq}, are part of it; see {PROVENANCE} there")
    say(f"gates: {report.verdict.value}")


def _check_new(kept: Stores, name: str) -> None:
    """Say before the training that a name cannot be had."""
    check_name(name)
    if name in [found.settings.name for found in kept.lineages.lineages()]:
        raise InvalidInput(f"expected a free name for a lineage, got {name!r}, taken", lineage=name)


def _live(
    kept: Stores, lineage: Lineage, without: Sequence[str]
) -> tuple[LoadPlan, dict[str, Mapping[str, Any]], list[str]]:
    """Return what is loaded for the champion, with the rows of its facts, these by edit id, and those left out.

    Raises:
        InvalidInput: if nothing is live, something of it is about to leave, or what is to be left out is not live.
    """
    name = lineage.settings.name
    live = kept.history.edits(name, status="live", limit=MOST_EDITS) if lineage.champion_id else ()
    known = {str(row[key]) for row in live for key in ("edit_id", "request_id")}
    if strange := [ref for ref in without if ref not in known]:
        raise InvalidInput(f"expected live facts of {name!r} to leave out, got {strange[0]!r:.120}", lineage=name)
    rows = [row for row in live if str(row["edit_id"]) not in without and row["request_id"] not in without]
    left_out = sorted({str(row["edit_id"]) for row in live} - {str(row["edit_id"]) for row in rows})
    if not rows:
        raise InvalidInput(f"expected a lineage with live facts to fold, got {name!r}, which has none", lineage=name)
    if kept.history.edits(name, status="live, removal pending", limit=1):
        raise InvalidInput(f"expected no removal under way in {name!r}, got one: fold when it is done", lineage=name)
    plan = kept.snapshots.load_plan(name, snapshot_id=lineage.champion_id)
    ledger = kept.snapshots.ledger_plan(name, snapshot_id=lineage.champion_id)
    told = {str(row["edit_id"]): row for row in rows}
    of_folded = (replace(item, edit_ids=tuple(filter(told.__contains__, item.edit_ids))) for item in ledger.rows)
    ledger = replace(ledger, rows=tuple(item for item in of_folded if item.edit_ids))
    return replace(plan, ledger=ledger), told, left_out


def _folded(asked: Mapping[str, Any], sign: SignOfLife) -> dict[str, Any]:
    """Let a process of its own train: the control plane never holds a model."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(asked, default=str))
        file.flush()
        found: dict[str, Any] = json.loads(run_module("editors.folding", file.name, tell=sign.tell))
    return found


def _origin(
    lineage: Lineage, plan: LoadPlan, digest: str, report: GateReport, told: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return where a base comes from: lineage, snapshot, pristine base, verdict, and every edit with its approval."""
    edits = [{key: str(row[key]) if row[key] is not None else None for key in TOLD} for row in told.values()]
    return {
        "lineage": lineage.settings.name,
        "snapshot_id": plan.snapshot_id,
        "snapshot_digest": plan.digest,
        "pristine_base_digest": plan.base.digest,
        "base_digest": digest,
        "policy_digest": report.policy_digest,
        "verdict": report.verdict.value,
        "rows": [asdict(row) for row in report.rows],
        "folded_by": cli_actor(),
        "edits": edits,
    }


def _recorded(origin: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return what the audit lines say: all but the list of edits, of which they have the number, and the digest."""
    short = {key: value for key, value in origin.items() if key not in ("edits", "rows", "folded_by")}
    return {**short, "num_edits": len(origin["edits"]), "provenance_digest": sha256_text(text)}
