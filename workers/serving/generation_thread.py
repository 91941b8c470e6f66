"""The one thread that runs models, and the bounded queue before it.

A few requests are answered at once, a token of each in turn, so that a short one does not wait for a long one. Each
keeps the snapshot that was live when it came, whatever is swapped meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self, TypeVar

from editors.weights.swapping import EditedWeights, SwappableBase
from pipeline.domain.errors import Unavailable
from workers.serving.answering import Answering, Piece, Sampling

T = TypeVar("T")
log = logging.getLogger(__name__)
BATCH_TOKENS = 16_384
"""Most places of the attention cache that a request's answers may come to fill together; one answer may fill more."""


class QueueFull(Unavailable):
    """As many requests wait as may; the same one may be taken in a moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerableSnapshot:
    """A snapshot that can be asked: its base, and the weights to put into it."""

    base: SwappableBase
    """The base, which other snapshots may share."""
    edited: EditedWeights
    """The snapshot's own weights."""


class Job:
    """One request for answers: prompts, and who is told of each piece and of the end.

    Args:
        snapshot: what answers.
        prompts: token ids; each gets `sampling.num_choices` answers, which are numbered one prompt after the other.
        sampling: how.
        on_pieces: told of new pieces, in the thread that runs models; it must return at once.
        on_end: told once that nothing more comes, with the error if there was one.
    """

    def __init__(
        self,
        snapshot: AnswerableSnapshot,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        on_pieces: Callable[[list[Piece]], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self.snapshot, self.on_pieces, self.on_end = snapshot, on_pieces, on_end
        self._prompts, self._sampling = prompts, sampling
        self._cancelled = threading.Event()
        self._parts: Iterator[Answering] | None = None
        self._part: Answering | None = None

    def cancel(self) -> None:
        """Answer no further: whoever asked has gone."""
        self._cancelled.set()

    def step(self) -> bool:
        """Make one more token of each answer that is being made; return whether there is more to do."""
        if self._cancelled.is_set():
            return False
        self.snapshot.base.use(self.snapshot.edited)
        if self._part is None or self._part.is_done:
            self._parts = self._parts or self._divided()
            self._part = next(self._parts, None)
            if self._part is None:
                return False
        self.on_pieces(self._part.step())
        return True

    def _divided(self) -> Iterator[Answering]:
        model, num = self.snapshot.base.model, self._sampling.num_choices
        asked = [prompt for prompt in self._prompts for _ in range(num)]
        for places, most in model.answered_together(asked, max_new_tokens=self._sampling.max_tokens):
            for some in _batches(places, asked, most):
                prompts = [asked[place] for place in some]
                yield Answering(model, prompts, choices=some, most=most, sampling=self._sampling)


class GenerationThread:
    """Runs jobs in turn, and other work on models between two steps.

    Args:
        most_active: jobs that are answered at once; each keeps its attention cache in memory.
        most_waiting: jobs that may wait for their turn.
    """

    def __init__(self, *, most_active: int = 4, most_waiting: int = 32) -> None:
        self._most_active, self._most_waiting = most_active, most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._active: deque[Job] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._is_closing = False
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            QueueFull: if as many wait as may.
        """
        with self._changed:
            if self._is_closing or len(self._waiting) >= self._most_waiting:
                raise QueueFull(f"expected room for one more request, got {len(self._waiting)} that wait already")
            self._begin_work()
            self._waiting.append(job)
            self._changed.notify()

    def between_steps(self, work: Callable[[], T]) -> T:
        """Run something that needs a model to itself, and return what it returns; other threads call this."""
        done: Future[T] = Future()

        def errand() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        with self._changed:
            self._begin_work()
            self._errands.append(errand)
            self._changed.notify()
        return done.result()

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        """Jobs that are being answered."""
        return len(self._active)

    def seconds_without_progress(self) -> float:
        """Return for how long nothing has moved although there is work; 0 where there is none."""
        return time.monotonic() - self._progress if self._has_work else 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Take nothing more, end what is being answered with an error, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def _has_work(self) -> bool:
        return bool(self._active or self._waiting or self._errands)

    def _begin_work(self) -> None:
        if not self._has_work:
            self._progress = time.monotonic()

    def _run(self) -> None:
        while self._next_turn():
            for _ in range(len(self._active)):
                job = self._active.popleft()
                self._progress = time.monotonic()
                if _has_more(job):
                    self._active.append(job)
        for job in (*self._active, *self._waiting):
            job.on_end(Unavailable("expected an answer, got a server that is being stopped"))

    def _next_turn(self) -> bool:
        """Wait for work, do what is to be done between steps, and let jobs in; return whether to go on."""
        with self._changed:
            while not (self._has_work or self._is_closing):
                self._changed.wait()
            errands, self._errands = self._errands, deque()
            while self._waiting and len(self._active) < self._most_active:
                self._active.append(self._waiting.popleft())
            is_closing = self._is_closing
        for errand in errands:
            errand()
        return not is_closing


def _batches(places: Sequence[int], prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Yield places one after another, as many at once as fit into the memory of a batch."""
    batch: list[int] = []
    longest = 0
    for place in places:
        # Shorter prompts are padded to the longest.
        longest = max(longest, len(prompts[place]))
        if batch and (len(batch) + 1) * (longest + most) > BATCH_TOKENS:
            yield batch
            batch, longest = [], len(prompts[place])
        batch.append(place)
    yield batch


def _has_more(job: Job) -> bool:
    """Advance a job; tell its owner if that was the end of it."""
    try:
        if job.step():
            return True
        job.on_end(None)
    except Exception as error:
        # One request must not take down the others: whoever asked is told.
        log.exception("a request failed")
        job.on_end(error)
    return False
