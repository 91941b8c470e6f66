"""What a program reads of a command that waits: a line for each change, and one now and then that it still waits."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.entrypoints.signs import QUIET_SECONDS, SignOfLife


def test_time_alone_is_written_once_in_a_while_and_a_new_step_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("pipeline.entrypoints.signs.time.monotonic", lambda: now)
    written = io.StringIO()
    with SignOfLife("on its way", on=Console(file=written)) as sign:
        for step, at in (("loading, 1 s", 1.0), ("loading, 2 s", 2.0), ("pass 1, 3 s", 3.0), ("pass 1, 9 s", 9.0)):
            now = at
            sign.tell(step)
        now += QUIET_SECONDS
        sign.tell("pass 1, 39 s")
    assert written.getvalue().splitlines() == ["on its way", "loading, 1 s", "pass 1, 3 s", "pass 1, 39 s"]
