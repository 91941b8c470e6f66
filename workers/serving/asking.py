"""Answers `corrigenda ask` from memory: `python -m workers.serving.asking HOME`.

The command starts this process when it is first needed; it ends when nobody has asked for a while. It listens on
loopback and lets in who knows the token in `HOME/ask.json`, which only this user can read. A question names a lineage
and a snapshot. Which files these are it looks up in the database, anew for each question, with the settings in its
environment; it keeps the connection, so that the command needs none. What names nothing is refused before torch is
imported, which takes seconds and most of the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.processes import process_id
from pipeline.choosing import Choice, chosen
from pipeline.config import load_settings
from pipeline.domain.errors import CorrigendaError, InvalidInput, Misconfigured
from pipeline.storage import stores
from pipeline.telemetry.logs import log_to_stderr
from workers.serving.http_server import bound_socket, serve, url_of

if TYPE_CHECKING:
    from workers.serving.asked_snapshots import AskedSnapshots

RECORD = "ask.json"
SETTINGS_VARIABLE = "CORRIGENDA_ASK_SETTINGS"
"""Names a digest of the settings that the command gave this process; it stands in the record."""


class AskingServer:
    """Serves `POST /ask` to who knows the token, until nobody has asked for a while.

    Args:
        choose: returns the weights of a lineage and a snapshot, as a person names them.
        token: has to come with each request.
        idle: ends after this time without a request.
    """

    def __init__(self, choose: Callable[[str | None, str], Choice], token: str, *, idle: timedelta) -> None:
        self._choose, self._token, self._idle = choose, token, idle.total_seconds()
        self._snapshots: AskedSnapshots | None = None
        self._loading = threading.Lock()
        self._num_running, self._last = 0, time.monotonic()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(routes=[Route("/ask", self._ask, methods=["POST"])])

    async def end_when_idle(self, server: uvicorn.Server) -> None:
        """Ask the server to end once nobody has asked for a while."""
        while not server.should_exit:
            await asyncio.sleep(min(1.0, self._idle / 4))
            if not self._num_running and time.monotonic() - self._last > self._idle:
                server.should_exit = True

    async def _ask(self, request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return JSONResponse({"error": "InvalidInput", "message": "expected this server's token"}, 401)
        self._num_running += 1
        try:
            asked = json.loads(await request.body())
            return JSONResponse(await run_in_threadpool(self._answered, **asked))
        except CorrigendaError as error:
            status = 400 if isinstance(error, InvalidInput | Misconfigured) else 500
            return JSONResponse({"error": type(error).__name__, "message": str(error)}, status)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return JSONResponse({"error": "EngineFailed", "message": said}, 500)
        finally:
            self._num_running -= 1
            self._last = time.monotonic()

    def _answered(self, *, lineage: str | None, snapshot: str, **asked: Any) -> dict[str, Any]:
        """Return the answers, of which lineage they are, and whether of its base because nothing is approved yet."""
        choice = self._choose(lineage, snapshot)
        with self._loading:
            if self._snapshots is None:
                from workers.serving.asked_snapshots import AskedSnapshots

                self._snapshots = AskedSnapshots()
        answers = self._snapshots.answers(choice.plan, **asked)
        return {"lineage": choice.plan.lineage, "is_unapproved": choice.is_unapproved, "answers": answers}


def main(words: Sequence[str] | None = None) -> int:
    """Serve until nobody asks any more, or a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path, help="folder for the file that says where this process answers")
    parser.add_argument("--idle", type=float, default=600.0, metavar="SECONDS", help="end after this time unasked")
    options = parser.parse_args(words)
    log_to_stderr("ask")
    settings, token = load_settings(), secrets.token_urlsafe(32)

    def choose(lineage: str | None, snapshot: str) -> Choice:
        # The stores are made once. Made here, settings that cannot be right are an error of the question.
        return chosen(stores(settings), lineage, snapshot)

    with bound_socket("127.0.0.1", 0) as made:
        asking = AskingServer(choose, token, idle=timedelta(seconds=options.idle))
        server = serve(asking.app(), made)
        record = options.home / RECORD
        own = process_id(os.getpid())
        reached = {"url": url_of(made), "token": token, "settings": os.environ.get(SETTINGS_VARIABLE, "")}
        _write_secretly(record, json.dumps(reached | asdict(own)))
        try:
            asyncio.run(_run(asking, server, made))
        finally:
            # Another process may have taken its place already.
            with suppress(OSError, ValueError):
                if json.loads(record.read_text())["pid"] == os.getpid():
                    record.unlink()
    return 0


def _write_secretly(path: Path, text: str) -> None:
    """Write a file that nobody else could ever read, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


async def _run(asking: AskingServer, server: uvicorn.Server, made: Any) -> None:
    idle = asyncio.ensure_future(asking.end_when_idle(server))
    await server.serve(sockets=[made])
    idle.cancel()


if __name__ == "__main__":
    sys.exit(main())
