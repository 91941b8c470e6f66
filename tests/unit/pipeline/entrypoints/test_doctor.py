"""What `doctor` says of processes that run: whether they go on, and whether they can work."""

import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from infra.local import LocalStack
from pipeline.config import Settings
from pipeline.domain.errors import LoginRefused, Unavailable
from pipeline.entrypoints.cli.stack import _check_processes
from pipeline.entrypoints.liveness import health_file
from pipeline.entrypoints.watched import watched
from pipeline.telemetry.health import Check, Heartbeat

CONTROL, STEP = "control-worker", timedelta(hours=1)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The folder of a stack in which a process of ours runs; this one answers for it."""
    stack = LocalStack(tmp_path)
    stack.spawn(CONTROL, [sys.executable, "-c", "import time; time.sleep(3600)"])
    yield tmp_path
    stack.stop()


def refused() -> None:
    """Stand for a database that knows another password."""
    raise LoginRefused("the database does not accept the user 'corrigenda_control' or its password")


@pytest.mark.parametrize(
    ("late", "check", "says"),
    [
        (False, os.getpid, None),
        (False, refused, "control-worker cannot work (database: the database does not accept the user "),
        (True, refused, "control-worker makes no progress (ring: no progress for "),
    ],
)
def test_a_process_that_runs_and_cannot_work_is_told_with_the_reason(
    home: Path, monkeypatch: pytest.MonkeyPatch, late: bool, check: Check, says: str | None
) -> None:
    monkeypatch.setattr(Heartbeat, "is_late", late)
    settings = Settings(health_file=health_file(home, CONTROL))

    with watched(CONTROL, settings, heartbeats=[Heartbeat("ring", within=STEP)], checks={"database": check}):
        if says is None:
            assert _check_processes(home) == CONTROL
            return
        with pytest.raises(Unavailable) as told:
            _check_processes(home)
    assert str(told.value).startswith(says)
