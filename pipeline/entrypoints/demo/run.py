"""The main job from end to end on the embedded stack, told as a story; every figure shown was read back."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from infra.local import LocalStack, Service
from pipeline.bootstrap import publisher, stores
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import Misconfigured
from pipeline.domain.gates import GatePolicy
from pipeline.entrypoints.console import ExitCode, complain, say
from pipeline.entrypoints.demo.accounting import Accounts
from pipeline.entrypoints.demo.reader import ModelReader
from pipeline.entrypoints.demo.screen import StreamScreen
from pipeline.entrypoints.demo.steps import Steps, accounts
from pipeline.entrypoints.demo.stream import REVERTED_ID, again, message, questions, stream
from pipeline.entrypoints.demo.tables import (
    heading,
    tell_base,
    tell_before_and_after,
    tell_history,
    tell_refusals,
    tell_what_holds,
)
from pipeline.entrypoints.local_settings import with_endpoints
from pipeline.entrypoints.preparation import DEFAULT_FACTS, Prepared, make_lineage, prepare_base
from pipeline.entrypoints.processes import start_control_worker, start_edit_worker, start_intake, start_stack

LINEAGE = "demo"
BATCH_SIZE = 30
BATCH_MAX_WAIT = timedelta(seconds=1)


def run_demo(home: Path | None, *, keep: bool) -> int:
    """Run the demo in a fresh folder; return the exit status.

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
            say(f"\nleft running in {folder}; stop it with `corrigenda down --home {folder}`")
        else:
            LocalStack(folder).stop()
    wrong = found.imbalance()
    if wrong:
        complain(f"corrigenda: {wrong}")
    print(json.dumps(found.as_json()), flush=True)
    return ExitCode.failed if wrong else ExitCode.done


def _story(folder: Path, started_at: float) -> Accounts:
    asked = questions()
    prompts = [question["question"] for question in asked]
    heading("Measuring the base model (once for each base and suite)")
    prepared = _prepared()
    heading("Starting Kafka, PostgreSQL, Redis, MLflow and our processes")
    settings = _slow_processes(folder, prepared)
    with ThreadPoolExecutor(1) as pool, ModelReader(settings.mlflow_uri, LINEAGE) as reader:
        before = pool.submit(reader.ask_base, prepared.base.ref, prompts)
        before.add_done_callback(lambda said: tell_base(asked, said))
        stack, _ = start_stack(folder)
        kept = stores(settings)
        lineage = make_lineage(kept, LINEAGE, prepared, batch_size=BATCH_SIZE, policy=GatePolicy())
        say(f"editor: {lineage.settings.editor_identity}")
        start_intake(stack, settings)
        start_control_worker(stack, settings)
        with publisher(settings) as send, StreamScreen(started_at=started_at) as screen:
            steps = Steps(kept=kept, settings=settings, lineage=lineage.settings.name, send=send, screen=screen)
            steps.produce(stream(LINEAGE))
            steps.until_settled()
            said_before = dict(zip(prompts, before.result(), strict=True))
            steps.approve_in_registry(reason="checked the gate report")
            said_after = dict(zip(prompts, reader.ask_champion(prompts), strict=True))
            _second_thoughts(steps)
        tell_before_and_after(asked, said_before, said_after)
        tell_what_holds(kept, LINEAGE, reader)
        tell_refusals(kept, LINEAGE)
    broken = tell_history(kept, LINEAGE)
    return accounts(
        kept, LINEAGE, produced=steps.num_produced, audit_ok=not broken, seconds=time.monotonic() - started_at
    )


def _second_thoughts(steps: Steps) -> None:
    """Revert one edit in the middle, correct one fact twice more."""
    steps.revert(REVERTED_ID, reason="the source was withdrawn")
    steps.approve_in_registry(reason="without the withdrawn edit")
    for number, target in ((3, "Oslo"), (4, "Porto")):
        steps.produce([message(LINEAGE, again(f"again-{number}", number, target))])
        steps.until_settled()
    steps.approve_in_registry(reason="the last correction holds")


def _prepared() -> Prepared:
    facts = DEFAULT_FACTS
    return prepare_base(
        None, suite=facts / "suite.jsonl", text=facts / "perplexity.txt", prior_text=[facts / "prior.txt"]
    )


def _slow_processes(folder: Path, prepared: Prepared) -> Settings:
    """Start the edit worker, whose ranks take longest to load, as soon as its broker is there."""
    stack = LocalStack(folder)
    endpoints = stack.start([Service.REDIS])
    home = load_settings().model_copy(update={"home": folder, "batch_max_wait": BATCH_MAX_WAIT})
    settings = with_endpoints(home, endpoints)
    start_edit_worker(stack, settings, prepared.base)
    return settings


def _emptied(folder: Path) -> None:
    """Make a fresh folder for the demo; only one that a demo made is ever emptied."""
    mark = folder / ".corrigenda-demo"
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            raise Misconfigured(f"expected an empty folder or one of an earlier demo, got {folder}")
        LocalStack(folder).stop()
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
