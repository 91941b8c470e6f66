"""The main job from end to end on the embedded stack, told as a story; every figure shown was read back."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from infra.local import LocalStack, Service
from pipeline.bootstrap import Stores, anchor_checker, publisher, stores
from pipeline.config import Settings, load_settings
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import Misconfigured
from pipeline.domain.gates import GatePolicy
from pipeline.entrypoints.console import ExitCode, complain, out, say
from pipeline.entrypoints.demo.accounting import Accounts, Stopwatch
from pipeline.entrypoints.demo.asking import Answers, asked_about
from pipeline.entrypoints.demo.reader import ModelReader
from pipeline.entrypoints.demo.screen import StreamScreen
from pipeline.entrypoints.demo.steps import Steps, accounts
from pipeline.entrypoints.demo.stream import REVERTED_ID, contested, corrections, message, stream, unedited
from pipeline.entrypoints.demo.tables import (
    champion_package,
    heading,
    tell_base,
    tell_before_and_after,
    tell_history,
    tell_refusals,
    tell_unedited,
    tell_what_holds,
)
from pipeline.entrypoints.local_settings import with_endpoints
from pipeline.entrypoints.preparation import DEFAULT_FACTS, Prepared, make_lineage, prepare_base
from pipeline.entrypoints.processes import (
    start_control_worker,
    start_edit_worker,
    start_intake,
    start_stack,
    start_supervisor,
)
from pipeline.entrypoints.signs import SignOfLife
from pipeline.entrypoints.stopping import said_at_once, stop_at_once

LINEAGE = "demo"
BATCH_SIZE = 24
BATCH_MAX_WAIT = timedelta(seconds=0.5)


def run_demo(home: Path | None, *, keep: bool, num_corrections: int | None = None) -> int:
    """Run the demo in a fresh folder; return the exit status.

    Args:
        home: folder of the stack, emptied first; `demo` under the configured home by default.
        keep: leave everything running afterwards.
        num_corrections: how many of the real corrections are sent; all of them by default.
    """
    watch = Stopwatch()
    folder = (home or load_settings().home / "demo").absolute()
    _emptied(folder)
    try:
        with said_at_once("stopping everything that the demo started; Ctrl-C again kills it"):
            found = _story(folder, watch, num_corrections)
    except KeyboardInterrupt:
        stop_at_once(LocalStack(folder))
        raise
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


def _story(folder: Path, watch: Stopwatch, num: int | None) -> Accounts:
    facts = corrections(LINEAGE, num)
    asked, staying = asked_about(facts), asked_about(unedited(LINEAGE))
    heading("Starting Kafka, PostgreSQL, Redis and MLflow; measuring the base model (once for each base and suite)")
    LocalStack(folder).start(wait=False)  # they get ready while the base is measured
    with _sign("measuring the base model"):
        prepared = _prepared()
    watch.lap("measuring the base")
    settings = _slow_processes(folder, prepared)
    # One reader answers in turn; what it is asked about a champion is asked while the next edits are made.
    with ThreadPoolExecutor(1) as pool, ModelReader(settings, LINEAGE) as reader:
        before = pool.submit(reader.ask_base, prepared.base.ref, [*asked, *staying])
        before.add_done_callback(lambda said: None if said.exception() else tell_base(asked, said.result()))
        with _sign("starting the services and our processes"):
            kept = _started(folder, settings, prepared)
        watch.lap("starting")
        with publisher(settings) as send, StreamScreen(started_at=watch.started_at) as screen:
            steps = Steps(kept=kept, settings=settings, lineage=LINEAGE, send=send, screen=screen)
            steps.produce(stream(LINEAGE, num))
            steps.until_settled()
            watch.lap("editing")
            steps.approve_in_registry(reason="checked the gate report")
            watch.lap("approving")
            held = {str(row["request_id"]) for row in kept.history.edits(LINEAGE, status="snapshotted")}
            holding = [one for one in asked if one.request.request_id in held]
            digest = champion_package(kept, LINEAGE)
            after = pool.submit(reader.ask_champion, [*holding, *staying], package_digest=digest)
            last = _second_thoughts(steps, after)
            watch.lap("second thoughts")
            screen.doing("asking the champion")
            said = after.result()
        answers = {one: said[one] for one in holding}
        tell_before_and_after(before.result(), answers)
        tell_unedited(staying, before.result(), said)
        with _sign("asking the champion once more"):
            tell_what_holds(kept, LINEAGE, reader, [*facts, last])
        tell_refusals(kept, LINEAGE)
    broken = tell_history(kept, anchor_checker(settings), LINEAGE)
    watch.lap("reading back")
    return accounts(kept, LINEAGE, produced=steps.num_produced, audit_ok=not broken, answers=answers, watch=watch)


def _started(folder: Path, settings: Settings, prepared: Prepared) -> Stores:
    """Wait for the services, make the lineage, and start the processes that need it."""
    stack, _ = start_stack(folder)
    kept = stores(settings)
    lineage = make_lineage(kept, LINEAGE, prepared, batch_size=BATCH_SIZE, policy=GatePolicy())
    say(f"editor: {lineage.settings.editor_identity}")
    start_intake(stack, settings)
    start_control_worker(stack, settings)
    start_supervisor(stack, settings)
    return kept


def _second_thoughts(steps: Steps, asked: Future[Answers]) -> EditRequest:
    """Revert one edit in the middle, correct one fact twice more, approve both; return the last correction.

    Args:
        steps: the actors of the demo.
        asked: what is being asked of the champion, which has to stay until it has answered.
    """
    steps.revert(REVERTED_ID, reason="the source was withdrawn")
    again = [contested(f"again-{number}", number, target) for number, target in ((3, "Oslo"), (4, "Porto"))]
    steps.produce([message(LINEAGE, correction) for correction in again])
    steps.until_settled()
    steps.screen.doing("asking the first champion, which has to stay until it has answered")
    asked.result()
    steps.approve_in_registry(reason="without the withdrawn edit; the last correction holds")
    return parse_object({"lineage": LINEAGE} | again[-1])


def _sign(doing: str) -> SignOfLife:
    return SignOfLife(doing, is_quiet=not out.is_terminal, on=out)


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
