"""What happens around every request: bounds, headers that keep browsers careful, and one line in the log."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.entrypoints.web.problems import Problem, answer_of

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}
"""Of every answer that does not set them itself."""


class _TooLarge(Exception):
    """A body that went past its bound while it was read."""


class BodyLimit:
    """Refuses bodies that are larger than a bound, whether they say so or not."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as long as its body is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said[:20]) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        num_bytes, has_begun = 0, False

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except _TooLarge:
            if has_begun:
                raise
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"expected a body of at most {self._max_bytes} bytes, got a larger one; send it in parts"
        problem = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, headers={"Connection": "close"})
        await answer_of(problem)(scope, receive, send)


class Told:
    """Adds careful headers to every answer, and tells of each request in the log: never its query, body or token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = structlog.get_logger(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        structlog.contextvars.clear_contextvars()

        async def careful(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                more = [(name, value) for name, value in HEADERS.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self._app(scope, receive, careful)
        finally:
            self._log.info(
                "request",
                method=scope["method"],
                route=_route(scope),
                status=status,
                milliseconds=round((time.perf_counter() - began) * 1000, 1),
            )


def _route(scope: dict[str, Any] | Scope) -> str | None:
    """Return the path of the route with its parameters' names, which hold nobody's data."""
    return getattr(scope.get("route"), "path", None)
