"""Ports of this machine: whether one is free, and who holds it."""

import random
import socket
import time
from collections.abc import Iterable
from datetime import timedelta

from infra.local.processes import POLL_SECONDS
from infra.local.recipe import HOST

# Below the range that Linux hands out to outgoing connections: a port we chose stays free until its service binds it.
PORT_RANGE = (20_000, 32_000)
PORT_GRACE = timedelta(seconds=2)


def port_is_free(port: int) -> bool:
    """Return whether nobody listens on 127.0.0.1:``port``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def comes_free(port: int) -> bool:
    """Return whether a port is free or soon is: threads of a process that was just killed may hold it for a moment."""
    deadline = time.monotonic() + PORT_GRACE.total_seconds()
    while not port_is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def free_port(taken: Iterable[int]) -> int:
    """Return a port that is free now and none of those taken, which nobody could guess."""
    candidates = random.SystemRandom().sample(range(*PORT_RANGE), 500)
    return next(port for port in candidates if port not in frozenset(taken) and port_is_free(port))


def why_taken(name: str, port: int) -> str:
    """Return why a port cannot be had, and what a person can do: `of 127.0.0.1 is in use by python3 (pid 123); …`."""
    way_out = f"let it have another port, which is kept: `corrigenda up --port {name}=0` takes a free one"
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except PermissionError:
            return f"of {HOST} may be had by the machine's administrator alone; {way_out}"
        except OSError:
            pass
    return f"of {HOST} is in use by {_holder_of(port)}; end that, or {way_out}"


def _holder_of(port: int) -> str:
    """Return who listens on a port, or `another user's program` where we may not know."""
    import psutil  # of the embedded stack alone: commands of a deployment come without it

    try:
        listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        pid = next((one.pid for one in listening if one.laddr and one.laddr.port == port and one.pid), None)
        return f"{psutil.Process(pid).name()} (pid {pid})" if pid else "another user's program"
    except (psutil.Error, OSError):
        return "another program"
