"""What every long-running process shows of itself: its health and metrics over HTTP, and its traces."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from pipeline.config import Settings
from pipeline.telemetry import tracing
from pipeline.telemetry.health import Check, Health, HealthServer, Heartbeat

log = structlog.get_logger(__name__)


@contextmanager
def watched(
    process: str,
    settings: Settings,
    *,
    heartbeats: Sequence[Heartbeat] = (),
    checks: Mapping[str, Check] | None = None,
) -> Iterator[None]:
    """Answer `/livez`, `/readyz` and `/metrics`, and send traces, while the block runs; nothing that is not asked for.

    Args:
        process: its name, in traces and for Prometheus.
        settings: where to listen and where traces go.
        heartbeats: its loops.
        checks: what it depends on, by name.

    Raises:
        Misconfigured: if the port cannot be listened on.
    """
    if settings.traces_endpoint:
        tracing.send_traces(process, endpoint=settings.traces_endpoint)
    try:
        if not settings.health_port and settings.health_file is None:
            yield
            return
        health = Health(heartbeats=heartbeats, checks=checks)
        with HealthServer(health, host=settings.health_host, port=settings.health_port) as server:
            log.info("health_served", host=settings.health_host, port=server.port)
            with _announced(settings.health_file, f"{settings.health_host}:{server.port}", process):
                yield
    finally:
        tracing.stop_traces()


@contextmanager
def _announced(file: Path | None, address: str, process: str) -> Iterator[None]:
    """Keep a file that says where the process answers, in the form that Prometheus' `file_sd_configs` read."""
    if file is None:
        yield
        return
    labels = {"job": process, "__meta_pid": str(os.getpid())}
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(json.dumps([{"targets": [address], "labels": labels}]))
    fresh.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
