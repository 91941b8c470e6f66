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
from pipeline.adapters import reachability
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import CorrigendaError
from pipeline.entrypoints.console import ExitCode, exit_code
from pipeline.entrypoints.stopping import stop_on_signals
from pipeline.entrypoints.watched import watched
from pipeline.services.chores import Chore, Chores
from pipeline.services.registry.anchoring import AnchorKeeper
from pipeline.telemetry.health import Check, Heartbeat
from pipeline.telemetry.logs import log_to_stderr

RELAY_EVERY = timedelta(seconds=0.5)
RING_EVERY = timedelta(seconds=5)
RECONCILE_EVERY = timedelta(seconds=3)
STANDING_EVERY = timedelta(seconds=15)
AUDIT_EVERY = timedelta(seconds=30)
STUCK_AFTER = timedelta(minutes=15)
"""The longest run of one chore, or one item of a relay: a model version with the files of a large base."""
GRACE = timedelta(seconds=10)
"""How long a run that was begun may take to end; what is left undone is claimed anew when its claim ends."""


def chores(
    settings: Settings, should_stop: Callable[[], bool] = lambda: False, beats: dict[str, Heartbeat] | None = None
) -> list[Chore]:
    """Return all that a control worker does; each kind of side effect has a relay, so that none waits for another.

    Raises:
        Misconfigured: if a service is not named.
    """
    settings.require("database_url", "redis_url", "kafka_bootstrap", "mlflow_uri")
    relay = bootstrap.relay(settings)
    due = bootstrap.due_kinds(settings)
    beats = {} if beats is None else beats

    def beating(name: str, every: timedelta, run: Callable[[], object]) -> Chore:
        """Each run is a sign of life of its thread, whatever comes of it."""
        beat = beats.setdefault(name, Heartbeat(name, within=STUCK_AFTER))

        def run_once() -> None:
            beat.beat()
            run()

        return Chore(name=name, every=every, run=run_once)

    def carry_out(kind: str) -> Chore:
        # What is handled item by item goes on with every item, however many there are.
        name = f"relay-{kind}"
        beat = beats.setdefault(name, Heartbeat(name, within=STUCK_AFTER))
        return beating(
            name, RELAY_EVERY, lambda: relay.run_once(kind, beat.told(should_stop)) if due.include(kind) else None
        )

    return [
        *(carry_out(kind) for kind in relay.kinds),
        beating("ring", RING_EVERY, bootstrap.reaper(settings).run_once),
        beating("reconcile", RECONCILE_EVERY, bootstrap.reconciler(settings).run_once),
        beating("standing", STANDING_EVERY, bootstrap.standing_teller(settings).run_once),
        beating("audit", AUDIT_EVERY, bootstrap.audit_patrol(settings).run_once),
        *(
            beating("anchor", AUDIT_EVERY, AnchorKeeper(chains=bootstrap.stores(settings).audit, file=file).run_once)
            for file in [bootstrap.anchor_notes(settings)]
            if file is not None
        ),
    ]


def dependencies(settings: Settings) -> dict[str, Check]:
    """Return what a control worker depends on, each with the question whether it answers."""
    return {
        "database": bootstrap.stores(settings).is_answering,
        "redis": reachability.redis(settings.redis_url.get_secret_value()),
        "kafka": reachability.kafka(settings.kafka_bootstrap),
        "mlflow": reachability.mlflow(
            settings.mlflow_uri,
            username=settings.mlflow_username,
            password=settings.mlflow_password.get_secret_value(),
        ),
    }


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    log_to_stderr("control-worker")
    log = structlog.get_logger(__name__)
    stop = stop_on_signals()
    beats: dict[str, Heartbeat] = {}
    try:
        settings = load_settings()
        found = chores(settings, stop.is_set, beats)
        with watched("control-worker", settings, heartbeats=[*beats.values()], checks=dependencies(settings)):
            log.info("control_started", chores=[chore.name for chore in found])
            if not Chores(found, stop=stop).run(grace=GRACE):
                log.error("control_failed", error="a thread ended without being told to")
                return int(ExitCode.failed)
    except CorrigendaError as error:
        log.error("control_failed", kind=type(error).__name__, error=str(error), ids=error.ids)
        return int(exit_code(error))
    log.info("control_stopped")
    return int(ExitCode.done)


if __name__ == "__main__":
    sys.exit(main())
