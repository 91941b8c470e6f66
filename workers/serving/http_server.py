"""Runs an ASGI application on a socket that was bound before anything heavy is loaded, until a signal ends it."""

from __future__ import annotations

import ipaddress
import socket
from datetime import timedelta
from typing import Any

import uvicorn

from pipeline.domain.errors import Misconfigured

GRACE = timedelta(seconds=20)
"""How long answers that are being streamed may go on after SIGTERM."""


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 for any free one.

    Raises:
        Misconfigured: if the address is taken or is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        said = f"{host} port {port}: {error.strerror or error}"
        raise Misconfigured(f"expected a free address to listen on, got {said}; --port names another") from error
    return made


def require_loopback(host: str) -> None:
    """Refuse an address that others reach, for a server that lets everybody in.

    Raises:
        Misconfigured: saying what to do.
    """
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise Misconfigured(
            f"expected a token file for an address that others reach, got {host} without one; give --token-file"
        )


def url_of(made: socket.socket) -> str:
    """Return the address of a bound socket."""
    host, port = made.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: Any, made: socket.socket, *, is_quiet: bool = True) -> uvicorn.Server:
    """Return a server of an application on a socket, whose `run` ends with SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app,
        log_config=None,
        # Where it listens is told by whoever runs it, and in their words.
        log_level="warning" if is_quiet else None,
        access_log=not is_quiet,
        lifespan="off",
        timeout_graceful_shutdown=int(GRACE.total_seconds()),
    )
    server = uvicorn.Server(config)
    server.config.load()
    return server
