"""The control worker: `python -m pipeline.entrypoints.control`.

It carries out the side effects that are owed, rings again for lineages that have work and nobody at it, and reads the
registry back. Several may run at once. It needs the database, the Celery broker, Kafka and MLflow; each may go and
come, and only what needs it waits.

It ends with 0 when it was told to stop (SIGTERM, SIGINT) and otherwise with the exit status of the error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta

import structlog

from pipeline import bootstrap
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import CorrigendaError
from pipeline.entrypoints.console import ExitCode, exit_code
from pipeline.entrypoints.process_logs import log_to_stderr
from pipeline.entrypoints.stopping import stop_on_signals
from pipeline.services.chores import Chore, Chores

RELAY_EVERY = timedelta(seconds=0.5)
RING_EVERY = timedelta(seconds=5)
RECONCILE_EVERY = timedelta(seconds=2)
GRACE = timedelta(seconds=10)
"""How long a run that was begun may take to end; what is left undone is claimed anew when its claim ends."""


def chores(settings: Settings, should_stop: Callable[[], bool] = lambda: False) -> list[Chore]:
    """Return all that a control worker does; each kind of side effect has a relay, so that none waits for another.

    Raises:
        Misconfigured: if a service is not named.
    """
    settings.require("database_url", "redis_url", "kafka_bootstrap", "mlflow_uri")
    relay = bootstrap.relay(settings)

    def carry_out(kind: str) -> Chore:
        return Chore(name=f"relay-{kind}", every=RELAY_EVERY, run=lambda: relay.run_once(kind, should_stop))

    return [
        *(carry_out(kind) for kind in relay.kinds),
        Chore(name="ring", every=RING_EVERY, run=bootstrap.reaper(settings).run_once),
        Chore(name="reconcile", every=RECONCILE_EVERY, run=bootstrap.reconciler(settings).run_once),
    ]


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    log_to_stderr()
    log = structlog.get_logger(__name__)
    stop = stop_on_signals()
    try:
        found = chores(load_settings(), stop.is_set)
    except CorrigendaError as error:
        log.error("control_failed", kind=type(error).__name__, error=str(error), ids=error.ids)
        return int(exit_code(error))
    log.info("control_started", chores=[chore.name for chore in found])
    if not Chores(found, stop=stop).run(grace=GRACE):
        log.error("control_failed", error="a thread ended without being told to")
        return int(ExitCode.failed)
    log.info("control_stopped")
    return int(ExitCode.done)


if __name__ == "__main__":
    sys.exit(main())
