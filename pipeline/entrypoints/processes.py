"""Our own processes on one machine: what `up` starts under the roof of the embedded stack. Runs no work itself."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from infra.local import LocalStack
from pipeline.config import Settings
from pipeline.domain.rank_api import BaseSpec
from pipeline.entrypoints.local_settings import environment_of

INTAKE = "intake"
CONTROL_WORKER = "control-worker"
EDIT_WORKER_GRACE = timedelta(seconds=60)


def start_intake(stack: LocalStack, settings: Settings) -> None:
    """Start the process that records corrections."""
    argv = [sys.executable, "-m", "pipeline.entrypoints.consumer"]
    stack.spawn(INTAKE, argv, environment_of(settings))


def start_control_worker(stack: LocalStack, settings: Settings) -> None:
    """Start the worker that relays the outbox, rings again, and reconciles the registry, with beat."""
    schedule = stack.root / "celery-beat"
    argv = [*_celery(), "-B", "-s", str(schedule), "-P", "threads", "-c", "4", "-Q", "control", "-n", "control@%h"]
    stack.spawn(CONTROL_WORKER, argv, environment_of(settings))


def start_edit_worker(stack: LocalStack, settings: Settings, base_spec: BaseSpec) -> str:
    """Start the worker whose ranks hold one base; returns its name among the stack's processes."""
    base = base_spec.digest[:12]
    settings = settings.model_copy(
        update={
            "warm_base": Path(base_spec.ref),
            "warm_base_digest": base_spec.digest,
            "warm_base_task": base_spec.task,
        }
    )
    name = f"edit-worker-{base}"
    argv = [*_celery(), "-P", "prefork", "-c", "1", "-Q", f"edits.{base}", "-n", f"edit-{base}@%h"]
    stack.spawn(name, argv, environment_of(settings), grace=EDIT_WORKER_GRACE)
    return name


def _celery() -> list[str]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO"]
    return [sys.executable, "-m", "celery", "-A", "workers.app", "worker", *quiet]
