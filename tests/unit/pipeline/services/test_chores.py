"""Periodic work: none waits for another, and whatever goes wrong it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from pipeline.domain.errors import Misconfigured, Unavailable
from pipeline.services import chores
from pipeline.services.chores import Chore, Chores
from tests.support.waiting import eventually, patience

OFTEN = timedelta(milliseconds=1)
SOON = timedelta(seconds=1)


def working(*runs: Callable[[], object]) -> tuple[threading.Thread, threading.Event, list[bool]]:
    """Start the chores in a thread; returns it, the event that stops them, and where the answer will be."""
    stop, answers = threading.Event(), list[bool]()
    found = [Chore(name=f"chore-{place}", every=OFTEN, run=run) for place, run in enumerate(runs)]
    thread = threading.Thread(target=lambda: answers.append(Chores(found, stop=stop).run(grace=SOON)))
    thread.start()
    return thread, stop, answers


def test_a_chore_that_hangs_delays_no_other() -> None:
    let_go, runs = threading.Event(), list[str]()
    thread, stop, answers = working(let_go.wait, lambda: runs.append("ran"))
    eventually(lambda: len(runs) > 20, "twenty runs beside the one that hangs")
    stop.set()
    let_go.set()
    thread.join()
    assert answers == [True]


@pytest.mark.parametrize(
    "error", [Unavailable("away"), Misconfigured("wrong", chore="x"), KeyError("lineage"), OSError()]
)
def test_a_chore_goes_on_after_any_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "LONGEST_WAIT", OFTEN * 4)
    runs: list[str] = []

    def run() -> None:
        runs.append("ran")
        raise error

    thread, stop, answers = working(run)
    eventually(lambda: len(runs) > 10, "ten runs")
    stop.set()
    thread.join()
    assert answers == [True]


def test_a_failure_that_stays_the_same_is_told_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "LONGEST_WAIT", OFTEN)
    failures: list[Exception | None] = [Unavailable("away"), Unavailable("away"), Misconfigured("wrong"), KeyError("x")]
    left = iter([*failures, KeyError("x"), None, None, Unavailable("away")])
    over = threading.Event()

    def run() -> None:
        match next(left, over):
            case threading.Event():
                over.set()
            case Exception() as error:
                raise error

    with capture_logs() as logs:
        thread, stop, _ = working(run)
        assert over.wait(patience())
        stop.set()
        thread.join()

    assert [(one["event"], one["log_level"]) for one in logs] == [
        ("chore_failed", "warning"),
        ("chore_failed", "error"),
        ("chore_broken", "error"),
        ("chore_goes_on", "info"),
        ("chore_failed", "warning"),
        ("chore_goes_on", "info"),
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_ends_the_process() -> None:
    def leave() -> None:
        raise SystemExit

    thread, _, answers = working(leave, lambda: None)
    thread.join()
    assert answers == [False]


def test_a_chore_that_does_not_end_does_not_hold_up_the_end() -> None:
    let_go = threading.Event()
    thread, stop, answers = working(let_go.wait)
    stop.set()
    thread.join()
    assert answers == [True]
    let_go.set()
