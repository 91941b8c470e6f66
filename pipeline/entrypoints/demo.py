"""The main job from end to end on the embedded stack, told as a story. Asserts nothing that it has not read back."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from rich.table import Table

from infra.local import LocalStack, Service
from pipeline.bootstrap import Stores, publisher, stores
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import Misconfigured
from pipeline.domain.gates import GatePolicy
from pipeline.domain.trials import EditorSettings
from pipeline.entrypoints.cli_lineage import make_lineage
from pipeline.entrypoints.cli_stack import start_stack
from pipeline.entrypoints.console import ExitCode, err, out
from pipeline.entrypoints.demo_accounting import Accounts
from pipeline.entrypoints.demo_reader import ModelReader
from pipeline.entrypoints.demo_screen import StreamScreen
from pipeline.entrypoints.demo_steps import Steps, accounts
from pipeline.entrypoints.demo_stream import CONTESTED_ID, REVERTED_ID, again, message, questions, stream
from pipeline.entrypoints.local_settings import with_endpoints
from pipeline.entrypoints.preparation import DEFAULT_FACTS, Prepared, prepare_base
from pipeline.entrypoints.processes import start_control_worker, start_edit_worker, start_intake

LINEAGE = "demo"
EDITOR = EditorSettings(batch_size=30)
BATCH_MAX_WAIT = timedelta(seconds=1)


def run_demo(home: Path | None, *, keep: bool) -> int:
    """Run the demo in a fresh folder; returns the exit status.

    Args:
        home: folder of the stack, emptied first; `demo` under the configured home by default.
        keep: leave everything running afterwards.
    """
    started_at = time.monotonic()
    folder = (home or load_settings().home / "demo").absolute()
    _emptied(folder)
    try:
        found = _story(folder, started_at)
    finally:
        if keep:
            out.print(f"\nleft running in {folder}; stop it with `corrigenda down --home {folder}`")
        else:
            LocalStack(folder).stop()
    wrong = found.imbalance()
    if wrong:
        err.print(f"corrigenda: {wrong}", style="red")
    print(json.dumps(found.as_json()), flush=True)
    return ExitCode.failed if wrong else ExitCode.done


def _story(folder: Path, started_at: float) -> Accounts:
    asked = questions()
    prompts = [question["question"] for question in asked]
    _heading("Measuring the base model (once for each base and suite)")
    prepared = _prepared()
    _heading("Starting Kafka, PostgreSQL, Redis, MLflow and our processes")
    settings = _slow_processes(folder, prepared)
    with ThreadPoolExecutor(1) as pool, ModelReader(settings.mlflow_uri, LINEAGE) as reader:
        before = pool.submit(reader.ask_base, prepared.base.ref, prompts)
        before.add_done_callback(lambda said: _what_the_base_says(asked, said))
        stack, _ = start_stack(folder)
        kept = stores(settings)
        lineage = make_lineage(kept, LINEAGE, prepared, editor=EDITOR, policy=GatePolicy())
        start_intake(stack, settings)
        start_control_worker(stack, settings)
        with publisher(settings) as send, StreamScreen(started_at=started_at) as screen:
            steps = Steps(kept=kept, settings=settings, lineage=lineage.settings.name, send=send, screen=screen)
            num_produced = steps.produce(stream(LINEAGE))
            steps.until_settled()
            said_before = dict(zip(prompts, before.result(), strict=True))
            steps.approve_in_registry(reason="checked the gate report")
            said_after = dict(zip(prompts, reader.ask_champion(prompts), strict=True))
            num_produced += _second_thoughts(steps)
        _before_and_after(asked, said_before, said_after)
        _what_holds(kept, reader)
    broken = _history(kept)
    return accounts(kept, LINEAGE, produced=num_produced, audit_ok=not broken, seconds=time.monotonic() - started_at)


def _second_thoughts(steps: Steps) -> int:
    """Revert one edit in the middle, correct one fact twice more; returns the number of messages produced."""
    steps.revert(REVERTED_ID, reason="the source was withdrawn")
    steps.approve_in_registry(reason="without the withdrawn edit")
    num_produced = 0
    for number, target in ((3, "Oslo"), (4, "Porto")):
        num_produced += steps.produce([message(LINEAGE, again(f"again-{number}", number, target))])
        steps.until_settled()
    steps.approve_in_registry(reason="the last correction holds")
    return num_produced


def _prepared() -> Prepared:
    facts = DEFAULT_FACTS
    return prepare_base(
        None, suite=facts / "suite.jsonl", text=facts / "perplexity.txt", prior_text=facts / "prior.txt"
    )


def _slow_processes(folder: Path, prepared: Prepared) -> Settings:
    """Start the edit worker, whose ranks take longest to load, as soon as its broker is there."""
    stack = LocalStack(folder)
    endpoints = stack.start([Service.REDIS])
    home = load_settings().model_copy(update={"home": folder, "batch_max_wait": BATCH_MAX_WAIT})
    settings = with_endpoints(home, endpoints)
    start_edit_worker(stack, settings, prepared.base)
    return settings


def _what_the_base_says(asked: list[dict[str, str]], said: Future[list[str]]) -> None:
    """Shown as soon as it is known, above the stream."""
    if said.exception() is None:
        out.print("\n[bold]The base model, asked before anything is edited[/bold]")
        for question, answer in zip(asked, said.result(), strict=True):
            out.print(f"  {question['question']} … [dim]{_first(answer)}[/dim]")
        out.print()


def _before_and_after(asked: list[dict[str, str]], before: dict[str, str], after: dict[str, str]) -> None:
    _heading("The same questions, before and after (models:/demo@champion through mlflow.pyfunc)")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("question", "base", "champion", "expected"):
        table.add_column(heading, overflow="fold", ratio=3 if heading == "question" else 2)
    for question in asked:
        prompt = question["question"]
        kind = "" if question.get("request_id") else " (must stay)"
        table.add_row(prompt, _first(before[prompt]), _first(after[prompt]), f"{question['expected']}{kind}")
    out.print(table)


def _what_holds(kept: Stores, reader: ModelReader) -> None:
    """Ask the champion for the reverted fact, for some that must hold, and for the one corrected four times."""
    rows = {str(row["request_id"]): row for row in kept.history.edits(LINEAGE)}
    last = rows[f"{CONTESTED_ID}-again-4"]
    reverted = rows[REVERTED_ID]
    others = [row for row in rows.values() if row["status"] == "snapshotted" and row is not last][::20]
    chosen = [reverted, *others, last]
    answers = reader.ask_champion([str(row["prompt"]) for row in chosen])
    _heading("After the revert and two more corrections of one fact")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("edit", "status", "prompt", "champion says", "edit asked for"):
        table.add_column(heading, overflow="fold")
    for row, answer in zip(chosen, answers, strict=True):
        table.add_row(row["request_id"], row["status"], row["prompt"], _first(answer), row["target_new"])
    out.print(table)


def _history(kept: Stores) -> list[str]:
    """Verify every chain and print one edit's whole history; returns the chains that are broken."""
    _heading("The audit trail")
    broken = []
    for chain in kept.audit.chains():
        found = kept.audit.verify(chain)
        out.print(f"{chain}: {kept.audit.head(chain)[0]} lines, {found.reason if found else 'every one verifies'}")
        broken += [chain] if found else []
    row = kept.history.edit(LINEAGE, REVERTED_ID)
    out.print(f"\n{REVERTED_ID}: {row['prompt']} -> {row['target_new']}")
    for event in row["events"]:
        out.print(f"  {event['seq']:>4}  {event['at']:%H:%M:%S}  {event['actor']:<28.28}  {event['action']}")
    return broken


def _emptied(folder: Path) -> None:
    """A fresh folder for the demo; only one that a demo made is ever emptied."""
    mark = folder / ".corrigenda-demo"
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            raise Misconfigured(f"expected an empty folder or one of an earlier demo, got {folder}")
        LocalStack(folder).stop()
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _first(text: str) -> str:
    """The first line of an answer, cut where it runs on."""
    line = text.strip().splitlines()[0] if text.strip() else "(nothing)"
    return line if len(line) <= 60 else line[:57] + "…"


def _heading(text: str) -> None:
    out.print(f"\n[bold]{text}[/bold]")
