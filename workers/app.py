"""The Celery application of the edit worker: queues and delivery.

    celery -A workers.app worker -P prefork -c 1 -Q edits.<first 12 of the base's digest>,edits -n edit@%h

An edit worker is one pool process (spawned, for CUDA's sake) that drives one group of ranks; prefork keeps the part
that talks to the broker alive while a batch runs. Periodic work is no task: `pipeline.entrypoints.control` does it.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery import Celery, signals

from pipeline.adapters.celery_doorbell import EDIT_LINEAGE
from pipeline.config import load_settings
from pipeline.domain.errors import Misconfigured
from pipeline.telemetry.logs import log_to_stderr

EDITS = "edits"
"""Queue of work for any base. The workers of one base also have `celery_doorbell.edit_queue`."""

VISIBILITY_TIMEOUT_SECONDS = 3600
"""Redis delivers a message again that was not acknowledged for so long. A doorbell that rings twice does no harm."""

CHILD_START_SECONDS = 120.0
"""Most time that a spawned pool process takes to import the application; after it, Celery takes it for dead."""


def configuration() -> dict[str, Any]:
    """Return Celery's settings, when the application is first used; the program ends if one is missing."""
    try:
        settings = load_settings()
        settings.require("redis_url")
    except Misconfigured as error:
        sys.exit(str(error))
    return {
        "broker_url": settings.redis_url.get_secret_value(),
        # A broker that is away is waited for, at the start and later, however long it takes.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {"visibility_timeout": VISIBILITY_TIMEOUT_SECONDS},
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_retry_on_worker_lost": True,
        "task_default_queue": EDITS,
        "task_routes": {EDIT_LINEAGE: {"queue": EDITS}},
        "worker_prefetch_multiplier": 1,
        "worker_pool_start_method": "spawn",
        "worker_proc_alive_timeout": CHILD_START_SECONDS,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_redirect_stdouts": False,
    }


@signals.setup_logging.connect
def _log_as_every_process_does(loglevel: int | None = None, **_: object) -> None:
    """Keep Celery from a format of its own, in the worker and in its pool process."""
    log_to_stderr("edit-worker", loglevel or logging.INFO)


@signals.celeryd_after_setup.connect
def _keep_billiard_quiet(**_: object) -> None:
    """Keep the pool process from a log of billiard's own, which it would open before ours is there."""
    os.environ.pop("_MP_FORK_LOGLEVEL_", None)


app = Celery("corrigenda", include=["workers.tasks"])
app.add_defaults(configuration)
