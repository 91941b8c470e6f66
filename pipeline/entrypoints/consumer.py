"""The intake process: `python -m pipeline.entrypoints.consumer`.

It ends with 0 when it was told to stop (SIGTERM, SIGINT) and otherwise with the exit status of the error, as the
commands do: `misconfigured` for settings that cannot work and for a gap in the log, `unavailable` when the broker or
the database stayed away too long. Partitions that another intake holds are waited for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta

import structlog

from pipeline.adapters import reachability
from pipeline.adapters.kafka.source import KafkaSource
from pipeline.adapters.sql.database.engine import connect, for_a_process
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.partitions import SqlPartitionHolds
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import CorrigendaError
from pipeline.entrypoints.console import ExitCode, exit_code
from pipeline.entrypoints.stopping import stop_on_signals
from pipeline.entrypoints.watched import watched
from pipeline.services.intake import Intake
from pipeline.telemetry.health import Heartbeat
from pipeline.telemetry.logs import log_to_stderr

STUCK_AFTER = timedelta(minutes=2)
"""A round, or one try in it while a service is away, takes seconds: the limits of the broker's and the database's."""
UNREADY_AFTER = timedelta(seconds=30)
"""Since so long no poll went well: the broker or the database is away."""


def run(settings: Settings, should_stop: Callable[[], bool]) -> None:
    """Take in corrections until told to stop: the poll that was begun is recorded, then the group is left.

    Raises:
        Misconfigured, StreamGap: a person must act.
        Unavailable: a service stayed away too long.
    """
    settings.require("database_url", "kafka_bootstrap")
    engine = for_a_process(connect(settings.database_url.get_secret_value(), settings.database_role))
    store = SqlIntakeStore(engine, max_ahead=settings.max_ahead)
    loop, polls = Heartbeat("intake", within=STUCK_AFTER), Heartbeat("poll", within=UNREADY_AFTER)
    checks = {"database": reachability.database(engine), "polls": polls.check}
    try:
        with (
            watched("intake", settings, heartbeats=[loop], checks=checks),
            KafkaSource(settings, SqlPartitionHolds(engine, lasts=settings.lease_ttl)) as source,
        ):
            Intake(source=source, store=store, on_poll=polls.beat).run(loop.told(should_stop))
    finally:
        engine.dispose()


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    log_to_stderr("intake")
    log = structlog.get_logger(__name__)
    stop = stop_on_signals()
    try:
        settings = load_settings()
        log.info("intake_started", topic=settings.requests_topic, mode=settings.intake_mode)
        run(settings, stop.is_set)
    except CorrigendaError as error:
        log.error("intake_failed", kind=type(error).__name__, error=str(error), ids=error.ids)
        return int(exit_code(error))
    log.info("intake_stopped")
    return int(ExitCode.done)


if __name__ == "__main__":
    sys.exit(main())
