"""Whether a process gets on with its work, told over HTTP: `/livez`, `/readyz` and `/metrics`.

`/livez` means progress: each loop of the process beats when it goes on, and one that has not for too long makes the
answer 503, whatever else still answers. It asks no other service, so that an outage of the database restarts nobody.
`/readyz` asks what the process depends on.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from pipeline.domain.errors import CorrigendaError, Misconfigured, Unavailable
from pipeline.telemetry.metrics import HEARTBEAT_AGE

Check = Callable[[], None]
"""Asks one thing that a process depends on; raises if it does not answer."""

REMEMBERED = timedelta(seconds=5)
"""For so long an answer of `/readyz` stands: whoever asks often does not make the database answer as often."""
JSON_TYPE = "application/json; charset=utf-8"


class Heartbeat:
    """One loop's sign of life.

    Args:
        loop: its name.
        within: how long one round may take at most.
        rests: whether the loop has nothing to do until it is told (`working`); a loop at rest is never late.
    """

    def __init__(self, loop: str, *, within: timedelta, rests: bool = False) -> None:
        self.loop = loop
        self._within = within.total_seconds()
        self._num_working = 0 if rests else 1
        self._beaten_at = time.monotonic()

    def beat(self) -> None:
        """Say that the loop goes on."""
        self._beaten_at = time.monotonic()

    def told(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """Return a condition that a loop asks in every round, and that beats as it is asked."""

        def asked() -> bool:
            self.beat()
            return should_stop()

        return asked

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be held to the limit while something is being done."""
        self.beat()
        self._num_working += 1
        try:
            yield
        finally:
            self._num_working -= 1

    def check(self) -> None:
        """Raise if it is late; for loops that tell whether something else answers.

        Raises:
            Unavailable: naming the loop.
        """
        if self.is_late:
            raise Unavailable(f"expected {self.loop} to go on, got nothing for {self.age_seconds:.0f} seconds")

    @property
    def age_seconds(self) -> float:
        """Time since the last beat; 0 of a loop at rest."""
        return time.monotonic() - self._beaten_at if self._num_working else 0.0

    @property
    def is_late(self) -> bool:
        """Whether a round takes longer than it may."""
        return self.age_seconds > self._within


class Health:
    """The answers of one process.

    Args:
        heartbeats: its loops.
        checks: what it depends on, by name.
        registry: the metrics that it exposes.
    """

    def __init__(
        self,
        *,
        heartbeats: Sequence[Heartbeat] = (),
        checks: Mapping[str, Check] | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._heartbeats = tuple(heartbeats)
        self._checks = dict(checks or {})
        self._registry = registry
        self._lock = threading.Lock()
        self._readiness: tuple[float, dict[str, str]] | None = None
        self._ages = CollectorRegistry()
        self._ages.register(_Ages(self._heartbeats))

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Return status, content type and body for a path."""
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry) + generate_latest(self._ages)
        if path == "/livez":
            late = {beat.loop: f"no progress for {beat.age_seconds:.0f} s" for beat in self._heartbeats if beat.is_late}
            return _verdict(late)
        if path == "/readyz":
            return _verdict(self.failing())
        return HTTPStatus.NOT_FOUND, JSON_TYPE, b'{"paths": ["/livez", "/readyz", "/metrics"]}\n'

    def failing(self) -> dict[str, str]:
        """Return which checks fail, and why; asked anew once the last answer is a few seconds old."""
        with self._lock:
            if self._readiness is None or time.monotonic() - self._readiness[0] > REMEMBERED.total_seconds():
                failing = {name: why for name, check in self._checks.items() if (why := _failure(check)) is not None}
                self._readiness = (time.monotonic(), failing)
            return self._readiness[1]


class _Ages(Collector):
    """The ages of a process's heartbeats, as metrics."""

    def __init__(self, heartbeats: Sequence[Heartbeat]) -> None:
        self._heartbeats = heartbeats

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(HEARTBEAT_AGE, "Time since a loop of this process last went on.", labels=["loop"])
        for beat in self._heartbeats:
            family.add_metric([beat.loop], beat.age_seconds)
        yield family


class HealthServer:
    """A small HTTP server in threads of its own.

    Args:
        health: what it answers.
        host: address to listen on.
        port: its port; 0 takes a free one.

    Raises:
        Misconfigured: if the address cannot be listened on.
    """

    def __init__(self, health: Health, *, host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(health))
        except OSError as error:
            raise Misconfigured(f"cannot listen on {host}:{port} for /livez and /metrics: {error.strerror}") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # a client that sends nothing holds no thread for longer

        def do_GET(self) -> None:
            status, content_type, body = health.answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a line for each probe would be most of the log."""

    return Handler


def _verdict(wrong: Mapping[str, str]) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
    document = {"status": "failing", "failing": dict(wrong)} if wrong else {"status": "ok"}
    return status, JSON_TYPE, json.dumps(document).encode() + b"\n"


def _failure(check: Check) -> str | None:
    try:
        check()
    except CorrigendaError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None
