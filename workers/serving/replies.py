"""What comes out of the thread that runs models, brought to the event loop of the server.

    async with Reply(thread, snapshot, prompts, sampling) as reply:
        async for piece in reply: ...

Leaving the block early, as when the client has gone, ends the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from workers.serving.answering import Piece, Sampling
from workers.serving.generation_thread import AnswerableSnapshot, GenerationThread, Job


class Reply:
    """The answers to one request, as they come.

    Args:
        thread: runs the model.
        snapshot: answers.
        prompts: token ids.
        sampling: how.

    Raises:
        QueueFull: if as many requests wait as may.
    """

    def __init__(
        self,
        thread: GenerationThread,
        snapshot: AnswerableSnapshot,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> None:
        self.num_prompt_tokens = sum(map(len, prompts))
        """Tokens of the prompts together."""
        self.num_choices = len(prompts) * sampling.num_choices
        """How many answers there will be."""
        self._num_tokens: dict[int, int] = {}
        self._events: asyncio.Queue[list[Piece] | Exception | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: list[Piece] | Exception | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job = Job(snapshot, prompts, sampling, on_pieces=tell, on_end=tell)
        thread.submit(self._job)

    @property
    def usage(self) -> dict[str, int]:
        """Counts of tokens, so far."""
        made = sum(self._num_tokens.values())
        asked = self.num_prompt_tokens
        return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._job.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            for piece in event:
                self._num_tokens[piece.choice] = piece.num_tokens
                yield piece
