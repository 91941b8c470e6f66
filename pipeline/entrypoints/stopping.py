"""How long-running processes are told to stop, and how a person stops a command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from queue import SimpleQueue
from types import FrameType

from infra.local import LocalStack
from pipeline.entrypoints.console import complain, out, say

GRACE = timedelta(seconds=2)
"""How long a process may take to end by itself once somebody has pressed Ctrl-C."""


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set, however many come and whatever they interrupt."""
    stop = threading.Event()
    told: SimpleQueue[int] = SimpleQueue()

    def pass_on() -> None:
        told.get()
        stop.set()

    # A handler runs between two instructions of the main thread, which may hold the lock of the event just then, as
    # another handler may: `set` there would wait for itself. A SimpleQueue may be put to from anywhere.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: told.put(signum))
    threading.Thread(target=pass_on, name="stop", daemon=True).start()
    return stop


@contextmanager
def said_at_once(sentence: str, *, by: Callable[[str], None] | None = None) -> Iterator[None]:
    """Say a sentence the moment that Ctrl-C is pressed; what is inside takes its time to see it.

    Args:
        sentence: what happens now, and how to go on.
        by: prints it. Where a live screen is shown, only its own console prints above it: standard output's is
            taken if None.
    """

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        (by or (say if out.is_terminal else complain))(sentence)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stop_at_once(stack: LocalStack) -> None:
    """Stop a stack in a few seconds; a second Ctrl-C kills what is left."""
    names = [process.name for process in stack.status()]
    try:
        stack.stop(within=GRACE)
    except KeyboardInterrupt:
        complain("killing what is left")
        stack.stop(within=timedelta(0))
    complain(f"stopped {', '.join(names)}")
