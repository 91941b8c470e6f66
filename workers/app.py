"""The Celery application of the edit worker and of the control worker: queues, schedule, delivery.

    celery -A workers.app worker -P prefork -c 1 -Q edits.<first 12 of the base's digest>,edits -n edit@%h
    celery -A workers.app worker -B -s <home>/celery-beat -P threads -c 4 -Q control -n control@%h

An edit worker is one pool process (spawned, for CUDA's sake) that drives one group of ranks; prefork keeps the part
that talks to the broker alive while a batch runs. The control worker waits for a database, a broker and a registry, so
its tasks are threads, and beat (`-B`, its schedule in the file after `-s`) rings them; one control worker has `-B`.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery, platforms, signals

from pipeline.adapters.celery_doorbell import EDIT_LINEAGE
from pipeline.config import load_settings
from pipeline.domain.errors import Misconfigured

RELAY_OUTBOX = "corrigenda.relay_outbox"
RING_WAITING = "corrigenda.ring_waiting"
RECONCILE_REGISTRY = "corrigenda.reconcile_registry"
"""Names of the periodic tasks."""

EDITS, CONTROL = "edits", "control"
"""Queues of work for any base and of periodic work. The workers of one base also have `celery_doorbell.edit_queue`."""

EVERY_SECONDS = {RELAY_OUTBOX: 0.5, RING_WAITING: 5.0, RECONCILE_REGISTRY: 2.0}
"""Seconds between two runs of each periodic task. A run that has not begun by the next one is dropped."""

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
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {"visibility_timeout": VISIBILITY_TIMEOUT_SECONDS},
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_retry_on_worker_lost": True,
        "task_default_queue": EDITS,
        "task_routes": {name: {"queue": CONTROL} for name in EVERY_SECONDS} | {EDIT_LINEAGE: {"queue": EDITS}},
        "worker_prefetch_multiplier": 1,
        "worker_pool_start_method": "spawn",
        "worker_proc_alive_timeout": CHILD_START_SECONDS,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_redirect_stdouts": False,
        "beat_schedule": {
            name: {"task": name, "schedule": seconds, "options": {"expires": seconds}}
            for name, seconds in EVERY_SECONDS.items()
        },
    }


app = Celery("corrigenda", include=["workers.tasks"])
app.add_defaults(configuration)


@signals.beat_embedded_init.connect
def _die_with_the_worker(**_: object) -> None:
    """End embedded beat with its worker; of its own accord Celery does so for pool processes only."""
    platforms.set_pdeathsig("SIGKILL")
