"""What happens now: a lineage's audit lines as they are written, sent to the browser as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from pipeline.entrypoints.web.pages.rendering import HEADERS, fragment, page
from pipeline.entrypoints.web.pages.sessions import Denied
from pipeline.entrypoints.web.pages.signed_in import Reader
from pipeline.entrypoints.web.parts import Parts, WebParts

router = APIRouter()

LINES = 50
"""Lines that the page shows at first, and the most that one event adds."""
POLL_SECONDS = 2.0
LIFE_SECONDS = 300.0
"""After which a stream ends; the browser opens it again, and then whoever it is has to be logged in still."""
MAX_STREAMS = 100


class _Open:
    """How many streams are open in this process."""

    num = 0


@router.get("/lineages/{lineage}/stream")
def stream(request: Request, parts: Parts, session: Reader, lineage: str) -> Response:
    """Show the last lines, newest first; the page goes on by itself where JavaScript runs."""
    name = parts.stores.lineages.lineage(lineage).settings.name
    lines = parts.stores.api.pages.news(name, after=0, limit=LINES)
    last = lines[-1]["seq"] if lines else 0
    return page(request, "stream.html", session, lineage=name, lines=lines[::-1], last=last)


@router.get("/lineages/{lineage}/stream/events")
async def events(request: Request, parts: Parts, session: Reader, lineage: str, after: int = 0) -> Response:
    """Send lines above a place as they are written; a browser that comes back says where it was."""
    if _Open.num >= MAX_STREAMS:
        raise Denied(HTTPStatus.SERVICE_UNAVAILABLE, "Too many pages are open on the stream now; reload to look again.")
    seen = request.headers.get("last-event-id", "")
    start = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 16 else max(0, after)
    headers = {**HEADERS, "x-accel-buffering": "no"}
    return StreamingResponse(_lines(parts, lineage, start), media_type="text/event-stream", headers=headers)


async def _lines(parts: WebParts, lineage: str, after: int) -> AsyncIterator[str]:
    _Open.num += 1
    try:
        end = time.monotonic() + LIFE_SECONDS
        yield "retry: 3000\n\n"
        while time.monotonic() < end:
            lines = await run_in_threadpool(parts.stores.api.pages.news, lineage, after=after, limit=LINES)
            if lines:
                after = lines[-1]["seq"]
                yield _event(lines[::-1], lineage, after)
            else:
                yield ": nothing new\n\n"
            await asyncio.sleep(POLL_SECONDS)
    finally:
        _Open.num -= 1


def _event(lines: Any, lineage: str, seq: int) -> str:
    """Return lines as one event; its data are rows of the page's table."""
    rows = fragment("_lines.html", lines=lines, lineage=lineage)
    data = "\n".join(f"data: {line}" for line in rows.splitlines() if line.strip())
    return f"id: {seq}\nevent: lines\n{data}\n\n"
