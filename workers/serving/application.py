"""The HTTP side of a serving process: OpenAI's API, health and metrics."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipeline.domain.errors import CorrigendaError, InvalidInput, Misconfigured, Unavailable
from pipeline.telemetry import tracing
from workers.serving.following import Follower, ServedSnapshot, require_live
from workers.serving.generation_thread import GenerationThread, QueueFull
from workers.serving.lineages import ServedLineages
from workers.serving.metrics import ServingMetrics
from workers.serving.openai_wire import (
    DEFAULT_TOKENS,
    ChatRequest,
    CompletionRequest,
    Kind,
    chunk,
    error_body,
    read,
    require_bounded,
    whole,
)
from workers.serving.replies import Reply

MAX_BODY_BYTES = 2**20
STALLED_SECONDS = 120.0
"""A forward that takes longer than this will not end."""
SNAPSHOT_HEADER = "X-Corrigenda-Snapshot"
VERSION_HEADER = "X-Corrigenda-Version"
RETRY_AFTER = {"Retry-After": "1"}
EXPECTED = {
    404: "expected a path of this server: /v1/chat/completions, /v1/completions or /v1/models",
    405: "expected POST to /v1/chat/completions and /v1/completions, and GET everywhere else",
}
"""What is said where no route takes a request, by status."""
OPEN = ("/livez", "/readyz", "/metrics")
"""Paths that need no token: they show no answer and no secret."""


class ServingApplication:
    """The routes of a serving process, around what it serves.

    Args:
        lineages: the models.
        thread: runs them.
        tokens: one of these has to come with a request; anybody may ask if there are none.
    """

    def __init__(self, lineages: ServedLineages, thread: GenerationThread, *, tokens: Sequence[str] = ()) -> None:
        self._lineages, self._thread = lineages, thread
        self._hashes = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._metrics = ServingMetrics(thread, lineages.every)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = {
            "/v1/models": ("GET", self._models),
            "/v1/models/{model}": ("GET", self._model),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._complete),
            "/livez": ("GET", self._livez),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._scraped),
        }
        return Starlette(
            routes=[Route(path, self._guarded(handle), methods=[method]) for path, (method, handle) in routes.items()],
            exception_handlers={HTTPException: _refused_by_routes},
        )

    def _guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Ask for a token, and turn errors into OpenAI's form; nobody sees a traceback."""

        async def guarded(request: Request) -> Response:
            if self._hashes and request.url.path not in OPEN and not self._is_let_in(request):
                said = error_body(
                    "expected a token of this server as `Authorization: Bearer …`, got none or another",
                    kind="invalid_request_error",
                    code="invalid_api_key",
                )
                return JSONResponse(said, 401, {"WWW-Authenticate": "Bearer"})
            try:
                return await handle(request)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                return _refusal(error)

        return guarded

    def _is_let_in(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()
        # Every hash is compared, so that the time tells nothing about which one is near.
        return any([hmac.compare_digest(given, known) for known in self._hashes]) and scheme.lower() == "bearer"

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_described(one) for one in self._lineages.every()]})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(_described(self._named(request.path_params["model"])))

    async def _chat(self, request: Request) -> Response:
        asked: ChatRequest = read(ChatRequest, await _body(request))
        served = require_live(self._named(asked.model))
        model = served.answerable.base.model
        if not model.has_chat_template:
            raise InvalidInput(f"expected a model with a chat template, got {asked.model!r}; use /v1/completions")
        return await self._answered(request, "chat", asked, served, [model.encode_prompt(asked.chat())])

    async def _complete(self, request: Request) -> Response:
        asked: CompletionRequest = read(CompletionRequest, await _body(request))
        served = require_live(self._named(asked.model))
        encoded = [served.answerable.base.model.encode_raw(prompt) for prompt in asked.prompt]
        return await self._answered(request, "completion", asked, served, encoded)

    async def _answered(
        self,
        request: Request,
        kind: Kind,
        asked: ChatRequest | CompletionRequest,
        served: ServedSnapshot,
        prompts: Sequence[Sequence[int]],
    ) -> Response:
        sampling = asked.sampling(DEFAULT_TOKENS[kind])
        # Refuses what is too long or too much before a stream has begun.
        together = served.answerable.base.model.answered_together(prompts, max_new_tokens=sampling.max_tokens)
        require_bounded([len(prompts[place]) + most for places, most in together for place in places], asked)
        reply = Reply(self._thread, served.answerable, prompts, sampling)
        timed = _Timed(self._metrics, served, reply, asked_by=request.headers.get(tracing.HEADER))
        headers = {SNAPSHOT_HEADER: served.files.snapshot_id, VERSION_HEADER: served.version.version}
        about = {
            "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": f"{asked.model}-{served.files.seq}-{served.files.digest[:12]}",
        }
        if asked.stream:
            counts = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(
                _streamed(kind, about, timed, counts=counts),
                media_type="text/event-stream",
                headers=headers | {"Cache-Control": "no-cache"},
            )
        choices = await _collected(request, timed)
        return JSONResponse(whole(kind, about=about, choices=choices, usage=reply.usage), headers=headers)

    def _named(self, name: str) -> Follower:
        found = self._lineages.get(name)
        if found is None:
            known = ", ".join(one.lineage for one in self._lineages.every()) or "none yet"
            raise InvalidInput(f"expected a model that is served ({known}), got {name!r:.100}", code="model_not_found")
        return found

    async def _livez(self, _: Request) -> Response:
        stalled = self._thread.seconds_without_progress()
        is_well = self._thread.is_alive and self._lineages.is_alive and stalled < STALLED_SECONDS
        return JSONResponse({"ok": is_well, "seconds_without_progress": round(stalled, 3)}, 200 if is_well else 503)

    async def _readyz(self, _: Request) -> Response:
        found = self._lineages.every()
        is_ready = bool(found) and all(one.serving is not None for one in found)
        said = {"ok": is_ready, "fault": self._lineages.fault, "lineages": {one.lineage: _health(one) for one in found}}
        return JSONResponse(said, 200 if is_ready else 503)

    async def _scraped(self, _: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)


class _Timed:
    """A reply whose times and tokens are counted when it ends, however it ends."""

    def __init__(self, metrics: ServingMetrics, served: ServedSnapshot, reply: Reply, *, asked_by: str | None) -> None:
        self.reply = reply
        self._metrics, self._lineage, self._begun = metrics, served.version.lineage, time.monotonic()
        self._served, self._asked_by, self._begun_at = served, asked_by, time.time_ns()
        self._is_begun = False

    async def pieces(self) -> AsyncIterator[Any]:
        """Yield pieces as they come; leaving early ends the work."""
        status = "499"
        try:
            async with self.reply:
                async for piece in self.reply:
                    if not self._is_begun:
                        self._is_begun = True
                        self._metrics.first_token_seconds.labels(self._lineage).observe(self._seconds)
                    yield piece
            status = "200"
        except Exception as error:
            status = str(_refusal(error).status_code)
            raise
        finally:
            usage = self.reply.usage
            self._metrics.requests.labels(self._lineage, status).inc()
            self._metrics.seconds.labels(self._lineage).observe(self._seconds)
            self._metrics.tokens.labels(self._lineage, "prompt").inc(usage["prompt_tokens"])
            self._metrics.tokens.labels(self._lineage, "completion").inc(usage["completion_tokens"])
            self._trace(status, usage["completion_tokens"])

    def _trace(self, status: str, num_tokens: int) -> None:
        """Record the answer as a part of the client's trace, and lead to that of the edits that it was made with."""
        tracing.past_span(
            "answer",
            began=self._begun_at,
            ended=time.time_ns(),
            parent=tracing.valid(self._asked_by),
            links=[self._served.version.traceparent],
            lineage=self._lineage,
            version=self._served.version.version,
            snapshot=self._served.files.snapshot_id,
            status=status,
            tokens=num_tokens,
        )

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._begun


async def _collected(request: Request, timed: _Timed) -> list[tuple[str, str]]:
    """Return text and ending of each answer.

    Raises:
        ClientDisconnect: if the client goes before they are done; then nothing more is made.
    """

    async def collect() -> list[tuple[str, str]]:
        texts, endings = [""] * timed.reply.num_choices, ["length"] * timed.reply.num_choices
        async for piece in timed.pieces():
            texts[piece.choice] += piece.text
            if piece.ending is not None:
                endings[piece.choice] = piece.ending
        return list(zip(texts, endings, strict=True))

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(collect()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _streamed(kind: Kind, about: dict[str, Any], timed: _Timed, *, counts: bool) -> AsyncIterator[str]:
    """Yield server-sent events, the last of them `[DONE]`."""
    begun: set[int] = set()
    try:
        async for piece in timed.pieces():
            is_first = piece.choice not in begun
            begun.add(piece.choice)
            if piece.text or is_first:
                yield _event(chunk(kind, about=about, index=piece.choice, text=piece.text, is_first=is_first))
            if piece.ending is not None:
                yield _event(chunk(kind, about=about, index=piece.choice, ending=piece.ending))
    except Exception as error:
        # The status is sent already; clients of OpenAI raise what an event calls an error.
        yield f"data: {bytes(_refusal(error).body).decode()}\n\n"
        return
    if counts:
        yield _event(chunk(kind, about=about, usage=timed.reply.usage))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise InvalidInput(f"expected a body of at most {MAX_BODY_BYTES} bytes, got more")
    return body


def _described(follower: Follower) -> dict[str, Any]:
    served = follower.serving
    return {
        "id": follower.lineage,
        "object": "model",
        "created": int(served.since) if served else 0,
        "owned_by": "corrigenda",
        "snapshot": served.files.snapshot_id if served else None,
        "version": served.version.version if served else None,
    }


def _health(follower: Follower) -> dict[str, Any]:
    served, read_ago = follower.serving, follower.seconds_since_read()
    return {
        "snapshot": served.files.snapshot_id if served else None,
        "seq": served.files.seq if served else None,
        "version": served.version.version if served else None,
        "version_wanted": follower.wanted,
        "seconds_behind": round(follower.seconds_behind(), 3),
        "seconds_since_read": None if read_ago is None else round(read_ago, 3),
        "fault": follower.fault,
    }


def _refusal(error: Exception) -> JSONResponse:
    """Return an error as OpenAI's API tells it."""
    if isinstance(error, CorrigendaError) and error.ids.get("code") == "model_not_found":
        return JSONResponse(error_body(str(error), kind="invalid_request_error", code="model_not_found"), 404)
    match error:
        case InvalidInput() | Misconfigured():
            said = error_body(str(error), kind="invalid_request_error", param=error.ids.get("param"))
            return JSONResponse(said, 400)
        case QueueFull():
            return JSONResponse(error_body(str(error), kind="server_error", code="overloaded"), 503, RETRY_AFTER)
        case Unavailable():
            return JSONResponse(error_body(str(error), kind="server_error", code="unavailable"), 503, RETRY_AFTER)
        case _:
            return JSONResponse(error_body("the model failed; the log says why", kind="server_error"), 500)


async def _refused_by_routes(_: Request, error: Exception) -> Response:
    status: int = getattr(error, "status_code", 500)
    return JSONResponse(error_body(EXPECTED.get(status, "refused"), kind="invalid_request_error"), status)
