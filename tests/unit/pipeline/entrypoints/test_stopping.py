"""Ctrl-C is answered at once, and ends everything in moments, whatever it is doing."""

import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from infra.local import LocalStack
from pipeline.entrypoints import stopping
from pipeline.entrypoints.stopping import said_at_once, stop_at_once, stop_on_signals

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def test_ctrl_c_is_answered_before_anything_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), said_at_once("stopping"):
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == "stopping\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    """Put the handlers of signals back that a test replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_kept")
def test_a_signal_that_comes_while_another_is_handled_or_the_event_is_locked_stops_all_the_same() -> None:
    stop = stop_on_signals()

    with stop._cond:  # type: ignore[attr-defined]  # as the main thread does for a moment in each `wait`
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    assert stop.wait(timeout=60)


@pytest.mark.parametrize("presses", [1, 2])
def test_processes_that_would_take_their_time_are_killed(
    presses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = LocalStack(tmp_path)
    stop, pressed = stack.stop, []

    def interrupted(*names: str, within: timedelta | None = None) -> None:
        pressed.append(within)
        if len(pressed) < presses:
            raise KeyboardInterrupt
        stop(*names, within=within)

    monkeypatch.setattr(stopping, "GRACE", timedelta(milliseconds=50))
    monkeypatch.setattr(stack, "stop", interrupted)
    for name in ("one", "two"):
        stack.spawn(name, [sys.executable, "-c", DEAF], grace=timedelta(minutes=10))

    stop_at_once(stack)

    assert stack.status() == []
    assert pressed == [timedelta(milliseconds=50), timedelta(0)][:presses]
    assert ("killing what is left" in capsys.readouterr().err) == (presses == 2)
