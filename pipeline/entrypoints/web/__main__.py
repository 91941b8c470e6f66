"""The process of the HTTP API: `python -m pipeline.entrypoints.web`.

It listens on loopback unless CORRIGENDA_WEB_HOST says otherwise; put a proxy with TLS before it then. It needs the
database and Kafka; each may go and come. It ends with 0 when it was told to stop (SIGTERM, SIGINT) and otherwise with
the exit status of the error.
"""

from __future__ import annotations

import socket
import sys
from datetime import timedelta

import structlog
import uvicorn

from pipeline import bootstrap
from pipeline.adapters import reachability
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import CorrigendaError, Misconfigured
from pipeline.entrypoints.console import ExitCode, exit_code
from pipeline.entrypoints.stopping import stop_on_signals
from pipeline.entrypoints.watched import watched
from pipeline.entrypoints.web.app import create_app
from pipeline.entrypoints.web.parts import web_parts
from pipeline.telemetry.health import Heartbeat
from pipeline.telemetry.logs import log_to_stderr

GRACE_SECONDS = 10
"""How long a request that was begun may take to end."""
BACKLOG = 512
STUCK_AFTER = timedelta(seconds=30)
"""Nothing may block the event loop for so long."""


def serve(settings: Settings) -> None:
    """Answer requests until a signal says to stop.

    Raises:
        Misconfigured: if a service is not named, or the port cannot be listened on.
    """
    settings.require("database_url", "kafka_bootstrap")
    parts = web_parts(settings, bootstrap.batch_publisher(settings))
    app = create_app(parts)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    beat = Heartbeat("web", within=STUCK_AFTER)
    checks = {"database": parts.stores.is_answering, "kafka": reachability.kafka(settings.kafka_bootstrap)}
    with (
        _listening(settings.web_host, settings.web_port) as listener,
        watched("web", settings, heartbeats=[beat], checks=checks),
    ):
        structlog.get_logger(__name__).info("web_started", host=settings.web_host, port=listener.getsockname()[1])
        _BeatingServer(config, beat).run(sockets=[listener])


class _BeatingServer(uvicorn.Server):
    """A server whose event loop gives a sign of life as long as nothing blocks it."""

    def __init__(self, config: uvicorn.Config, beat: Heartbeat) -> None:
        super().__init__(config)
        self._beat = beat

    async def on_tick(self, counter: int) -> bool:
        self._beat.beat()
        return await super().on_tick(counter)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = f"{host}:{port} (CORRIGENDA_WEB_HOST, CORRIGENDA_WEB_PORT)"
        raise Misconfigured(f"expected a free address to listen on, got {where}: {error.strerror}") from error


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    log_to_stderr("web")
    log = structlog.get_logger(__name__)
    # Uvicorn has handlers of its own while it serves, and hands the signal to these at its end.
    stop_on_signals()
    try:
        serve(load_settings())
    except CorrigendaError as error:
        log.error("web_failed", kind=type(error).__name__, error=str(error), ids=error.ids)
        return int(exit_code(error))
    log.info("web_stopped")
    return int(ExitCode.done)


if __name__ == "__main__":
    sys.exit(main())
