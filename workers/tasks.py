"""Celery's one task: the doorbell for edits.

A message carries no work, only "look again": it may be lost, repeated or late. A task that fails is tried again because
the database still says that the work is due.
"""

from __future__ import annotations

from functools import lru_cache

import structlog
from celery import signals

from pipeline import bootstrap
from pipeline.adapters.celery_doorbell import EDIT_LINEAGE
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import CorrigendaError, one_line
from pipeline.domain.rank_api import BaseSpec
from workers.app import app
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec

log = structlog.get_logger()


@app.task(name=EDIT_LINEAGE, max_retries=3)
def edit_lineage(lineage: str) -> None:
    """Work until the lineage has nothing due, unless another worker is at it."""
    try:
        bootstrap.edit_service(settings(), rank_group()).run(lineage)
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


def _warm_base(found: Settings) -> BaseSpec | None:
    if found.warm_base is None:
        return None
    return BaseSpec(ref=str(found.warm_base), digest=found.warm_base_digest, task=found.warm_base_task)


@signals.worker_process_init.connect
def _begin_to_start_the_ranks(**_: object) -> None:
    """Start the ranks early. Only pool processes get this signal, and only edit workers have any."""
    rank_group().start()


@signals.worker_process_shutdown.connect
def _end_the_ranks(**_: object) -> None:
    rank_group().close()
