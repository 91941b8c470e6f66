"""The supervisor of the embedded stack: `python -m pipeline.entrypoints.supervisor`, which `corrigenda up` starts.

It starts again whatever ends by itself, and ends what runs on without progress (`/livez`), so that it is started again
too. The embedded broker keeps nothing, so its topics are made anew with it. The supervisor has no state: one that was
killed is started again by the next `corrigenda up`.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from datetime import timedelta

import structlog

from infra.local import ALL, LocalStack, LocalStackError, ProcessState, Service, Supervisor
from pipeline.bootstrap import create_topics
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import CorrigendaError
from pipeline.entrypoints.liveness import StuckProcesses
from pipeline.entrypoints.processes import SUPERVISOR
from pipeline.entrypoints.watched import watched
from pipeline.telemetry.health import Heartbeat
from pipeline.telemetry.logs import log_to_stderr
from pipeline.telemetry.metrics import PROCESS_RESTARTS

LOOK_EVERY_SECONDS = 0.5
ASK_EVERY = timedelta(seconds=15)
STUCK_AFTER = timedelta(minutes=5)
"""A look that starts several services again takes its time."""

log = structlog.get_logger(__name__)


def main() -> None:
    """Look after the stack until the process is ended; SIGTERM ends it at once, between two looks or in one."""
    log_to_stderr(SUPERVISOR)
    settings = load_settings()
    beat = Heartbeat(SUPERVISOR, within=STUCK_AFTER)
    log.info("supervisor_started", home=str(settings.home))
    with watched(SUPERVISOR, settings, heartbeats=[beat]):
        _look_after(LocalStack(settings.home), settings, beat)


def _look_after(stack: LocalStack, settings: Settings, beat: Heartbeat) -> None:
    supervisor, stuck = Supervisor(stack), StuckProcesses(stack.root)
    has_topics, asked_at = True, time.monotonic()
    while True:
        time.sleep(LOOK_EVERY_SECONDS)
        beat.beat()
        try:
            started = supervisor.run_once()
            for name in started:
                PROCESS_RESTARTS.labels(process=name, reason="ended").inc()
            has_topics &= Service.KAFKA not in started
            if not has_topics:
                create_topics(settings)
                has_topics = True
            if time.monotonic() - asked_at > ASK_EVERY.total_seconds():
                end_stuck(stack, stuck)
                asked_at = time.monotonic()
        except (CorrigendaError, LocalStackError) as error:
            log.warning("supervisor_failed", error=str(error))
        except Exception:
            # It is the last one that may end.
            log.exception("supervisor_broken")


def end_stuck(stack: LocalStack, stuck: StuckProcesses) -> None:
    """Kill our own processes that make no progress; the next look starts them again."""
    for process in stack.status():
        if process.name in (*ALL, SUPERVISOR) or process.state is not ProcessState.RUNNING:
            continue
        reason = stuck.reason(process.name)
        if reason is not None:
            log.error("process_stuck", stuck=process.name, pid=process.pid, reason=reason)
            PROCESS_RESTARTS.labels(process=process.name, reason="stuck").inc()
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
