"""The process that `ask` leaves running, so that only the first question waits for a model to load.

It is started when it is needed and ends by itself when nobody asks; `corrigenda down` ends it too. Only this user can
read where it answers. One that was started with other settings, and so might ask another database, makes room for one
with those of the command.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.local.processes import ProcessId, end, is_alive, launch, process_id
from pipeline.computing import computing_environment
from pipeline.domain import errors
from pipeline.domain.errors import CorrigendaError, EngineFailed

RECORD, LOCK, LOG = "ask.json", "ask.lock", "ask.log"
SETTINGS_VARIABLE = "CORRIGENDA_ASK_SETTINGS"
"""What the process writes into its record; a secret like the settings, so it is no word of the command line."""
START_SECONDS, ANSWER_SECONDS, POLL_SECONDS = 300.0, 900.0, 0.05
GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Resident:
    url: str
    token: str
    settings: str
    """Digest of the environment that it was given."""
    process: ProcessId


def answers(
    home: Path, asked: Mapping[str, Any], *, given: Mapping[str, str], on_start: Callable[[], None] = lambda: None
) -> Any:
    """Return what the resident process answers; it is started if it does not run with these settings.

    Args:
        home: folder of the stack, where the process says how it is reached.
        asked: what `workers.serving.asking` takes.
        given: variables that the process gets besides those of its libraries: its settings.
        on_start: called before a process is started, which takes seconds.

    Raises:
        CorrigendaError: of the class that the process names; EngineFailed if it cannot be started.
    """
    body = json.dumps(asked)
    found = _running(home)
    if found is not None and found.settings == _digest(given):
        with suppress(ConnectionError):  # it was just ending
            return _post(found, body)
    on_start()
    return _post(_started(home, given, instead_of=found), body)


def stop(home: Path) -> bool:
    """End the resident process; return whether there was one."""
    found = _running(home)
    if found is None:
        return False
    end(found.process, first=signal.SIGTERM, grace_seconds=GRACE_SECONDS)
    with suppress(FileNotFoundError):
        (home / RECORD).unlink()
    return True


def _running(home: Path) -> _Resident | None:
    try:
        said = json.loads((home / RECORD).read_text(encoding="utf-8"))
        process = ProcessId(pid=int(said["pid"]), birth=str(said["birth"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if process_id(process.pid) != process:
        return None
    settings = str(said.get("settings", ""))  # a process of an earlier version names none, and is none to ask
    return _Resident(url=str(said["url"]), token=str(said["token"]), settings=settings, process=process)


def _started(home: Path, given: Mapping[str, str], *, instead_of: _Resident | None) -> _Resident:
    """Start the process, or wait for the one that another command is starting with the same settings."""
    digest = _digest(given)
    with _locked(home):
        found = _running(home)
        if found is not None and found != instead_of and found.settings == digest:
            return found
        if found is not None:
            end(found.process, first=signal.SIGTERM, grace_seconds=GRACE_SECONDS)
        (home / "logs").mkdir(exist_ok=True)
        log = home / "logs" / LOG
        argv = [sys.executable, "-m", "workers.serving.asking", str(home)]
        child = launch(argv, log=log, env={**given, SETTINGS_VARIABLE: digest}, inherited=computing_environment())
        until = time.monotonic() + START_SECONDS
        while (found := _running(home)) is None or found.process != child:
            if not is_alive(child) or time.monotonic() > until:
                end(child, first=signal.SIGTERM, grace_seconds=GRACE_SECONDS)
                raise EngineFailed(f"expected a process that answers, got none; {log} says why")
            time.sleep(POLL_SECONDS)
        return found


def _digest(given: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(given), sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _post(resident: _Resident, body: str) -> Any:
    where = urlsplit(resident.url)
    assert where.hostname is not None
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=ANSWER_SECONDS)
    headers = {"Authorization": f"Bearer {resident.token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/ask", body.encode(), headers)
        answer = connection.getresponse()
        said = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status == 200:
        return said
    kind = getattr(errors, str(said.get("error")), None)
    message = str(said.get("message"))
    raise kind(message) if isinstance(kind, type) and issubclass(kind, CorrigendaError) else EngineFailed(message)
