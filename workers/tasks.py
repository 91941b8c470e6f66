"""Celery's one task: the doorbell for edits.

A message carries no work, only "look again": it may be lost, repeated or late. A task that fails is tried again because
the database still says that the work is due.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import lru_cache

import structlog
from celery import signals
from structlog.contextvars import bound_contextvars

from pipeline import bootstrap
from pipeline.adapters import reachability
from pipeline.adapters.celery_doorbell import EDIT_LINEAGE
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import CorrigendaError, Misconfigured, Unavailable, one_line
from pipeline.domain.rank_api import BaseSpec
from pipeline.entrypoints.watched import watched
from pipeline.telemetry.health import Heartbeat
from workers.app import app
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec

log = structlog.get_logger()

COMMANDS_A_TRIAL = 4
"""A trial may load, edit, keep and hold, each within `Settings.command_timeout`, before the worker goes on; so may each
step that is told, as those of a long lineage's upkeep are."""
_shown = ExitStack()
"""What this process shows of itself while it runs."""


@app.task(name=EDIT_LINEAGE, max_retries=3)
def edit_lineage(lineage: str) -> None:
    """Work until the lineage has nothing due, unless another worker is at it."""
    try:
        with bound_contextvars(lineage=lineage), beat().working():
            bootstrap.edit_service(settings(), rank_group(), on_progress=beat().beat).run(lineage)
    except Misconfigured as error:
        # A person has to act, whom one sentence tells more than a traceback. The work stays due.
        log.error("stopped; it goes on once this is mended", lineage=lineage, error=one_line(error), ids=error.ids)
    except CorrigendaError as error:
        if not error.retryable:
            raise
        log.warning("stopped; the reaper will ring again", lineage=lineage, error=one_line(error), ids=error.ids)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return load_settings()


@lru_cache(maxsize=1)
def rank_group() -> RankGroup:
    """Return the one group of ranks of this process; nothing is started yet."""
    found = settings()
    logs = found.home.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    spec = RankSpec(
        num_ranks=found.num_ranks,
        deepspeed_config=found.deepspeed_config,
        warm_base=_warm_base(found),
        log=logs / "ranks.log",
    )
    return RankGroup(spec, command_timeout=found.command_timeout)


@lru_cache(maxsize=1)
def beat() -> Heartbeat:
    """Return the sign of life of this process: at rest until a doorbell rings, then held to the time of a trial."""
    return Heartbeat("edit", within=COMMANDS_A_TRIAL * settings().command_timeout, rests=True)


def _check_ranks() -> None:
    """Raise unless the ranks run; they are started anew by the next doorbell."""
    if not rank_group().pids:
        raise Unavailable("expected ranks behind this worker, got none")


def _warm_base(found: Settings) -> BaseSpec | None:
    if found.warm_base is None:
        return None
    return BaseSpec(ref=str(found.warm_base), digest=found.warm_base_digest, task=found.warm_base_task)


@signals.worker_process_init.connect
def _begin_to_start_the_ranks(**_: object) -> None:
    """Start the ranks early. Only pool processes get this signal, and only edit workers have any.

    This is the process that counts and can get stuck, so it answers for the worker; Celery's own starts it again if it
    ends. Whether that one still hears the broker, the age of the queue tells.
    """
    rank_group().start()
    found = settings()
    checks = {
        "database": lambda: bootstrap.stores(found).is_answering(),
        "redis": reachability.redis(found.redis_url.get_secret_value()),
        "ranks": _check_ranks,
    }
    _shown.enter_context(watched("edit-worker", found, heartbeats=[beat()], checks=checks))


@signals.worker_process_shutdown.connect
def _end_the_ranks(**_: object) -> None:
    _shown.close()
    rank_group().close()
