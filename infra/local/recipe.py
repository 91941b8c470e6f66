"""What the stack has to be told about a service to run it."""

import importlib.util
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from infra.local.errors import LocalStackError
from infra.local.records import Service

HOST = "127.0.0.1"
COMPLAINTS = ("FATAL", "ERROR", "rror:", "could not")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one service is started with."""

    service: Service
    """The service that is started."""
    folder: Path
    """Its data; exists and is its own."""
    log: Path
    """Where its output goes."""
    port: int
    """The port of 127.0.0.1 that it shall listen on."""
    password: str = field(repr=False)
    """The password of this service."""
    incarnation: str
    """Cluster id for a broker that starts now."""
    is_durable: bool
    """False where nothing has to survive a crash of the machine, as in tests."""

    def failed(self, reason: str) -> LocalStackError:
        """Return the error that says this service cannot run, with its log."""
        return LocalStackError(service=self.service, reason=reason, log=self.log)

    def last_words(self) -> str:
        """Return the line of its log that most likely says why it ended: the last one that complains, else the last."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        complaints = [line for line in lines[-30:] if any(sign in line for sign in COMPLAINTS)]
        return (complaints or lines or ["nothing"])[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A program to start."""

    argv: tuple[str, ...]
    """Path of the program, and its arguments."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables on top of our own; they may hold secrets."""


class Recipe(Protocol):
    """How one service is prepared, started, recognised as ready, and stopped."""

    stop_signal: signal.Signals

    def command(self, plan: Plan) -> Command:
        """Prepare the folder where needed and say what to start."""

    def is_ready(self, plan: Plan) -> bool:
        """Return whether it answers as it should; never raise because it does not yet."""

    def settle(self, plan: Plan) -> None:
        """Do what has to be done once it answers; may be called again."""


def program(wheel: str, package: str, *inside: str) -> str:
    """Return the path of a program inside an installed wheel, found without importing the package.

    Raises:
        LocalStackError: the wheel is missing, or brings no such program.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LocalStackError(
            service=inside[-1], reason=f"the wheel {wheel} is not installed; `make setup` installs it"
        )
    path = Path(spec.submodule_search_locations[0], *inside)
    if not path.is_file():
        raise LocalStackError(service=inside[-1], reason=f"expected the wheel {wheel} to bring {path}, found none")
    if not os.access(path, os.X_OK):
        path.chmod(path.stat().st_mode | 0o111)  # some installers lose the mode of files in a wheel
    return str(path)


def accepts_connections(port: int) -> bool:
    """Return whether somebody accepts connections on 127.0.0.1:``port``."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
