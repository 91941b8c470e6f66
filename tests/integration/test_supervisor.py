"""What ends by itself is started again, what somebody stopped is not, and nothing that is shown holds a secret."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import (
    LocalStack,
    ProcessState,
    ProcessStatus,
    Service,
    Supervisor,
    ephemeral,
    ephemeral_stack,
)
from infra.local.state import StateFolder
from pipeline.entrypoints.liveness import StuckProcesses, health_file
from pipeline.entrypoints.processes import told_of
from pipeline.entrypoints.supervisor import end_stuck
from tests.support.paths import ROOT
from tests.support.processes import is_gone
from tests.support.waiting import eventually

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
SECRET = "s3cret-of-a-child"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    stack = LocalStack(tmp_path / "stack", is_durable=False)
    yield stack
    stack.stop()


def process(stack: LocalStack, name: str) -> ProcessStatus:
    return next(status for status in stack.status() if status.name == name)


def kill(stack: LocalStack, name: str) -> int:
    """Kill a process of the stack, without asking the stack."""
    pid = process(stack, name).pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: process(stack, name).state is ProcessState.DIED, f"the end of {name}")
    return pid


def test_a_service_that_was_killed_comes_back_at_the_same_address(stack: LocalStack) -> None:
    before = stack.start([Service.REDIS])
    killed = kill(stack, "redis")
    assert Supervisor(stack).run_once() == ["redis"]
    now = process(stack, "redis")
    assert (now.state, now.restarts) == (ProcessState.RUNNING, 1)
    assert now.pid != killed
    assert stack.start([Service.REDIS]) == before, "it answers, with its password, where it did"
    assert "redis started again once, last at 2" in told_of(now)


def test_a_process_comes_back_with_its_arguments_and_variables(stack: LocalStack, tmp_path: Path) -> None:
    code = "import os, time; print(os.environ['TOKEN'], flush=True); time.sleep(600)"
    spawned = stack.spawn("ours", [sys.executable, "-c", code], {"TOKEN": SECRET})
    eventually(lambda: spawned.log.read_text() == f"{SECRET}\n", "its first word")
    kill(stack, "ours")
    assert Supervisor(LocalStack(stack.root)).run_once() == ["ours"]
    eventually(lambda: spawned.log.read_text() == f"{SECRET}\n" * 2, "the same word again")


def test_what_somebody_stopped_stays_away(stack: LocalStack) -> None:
    stack.spawn("one", SLEEPER)
    stack.spawn("two", SLEEPER)
    stack.stop("one")
    assert Supervisor(stack).run_once() == []
    assert not stack.revive("one")
    assert [status.name for status in stack.status()] == ["two"]
    assert not stack.revive("two"), "it runs"


def test_what_ends_again_and_again_waits_longer_each_time(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("infra.local.supervisor.time.monotonic", lambda: now[0])
    starts: list[float] = []
    monkeypatch.setattr(stack, "status", lambda: [ProcessStatus(
        name="ours", state=ProcessState.DIED, pid=1, port=None, log=Path("log"), restarts=0, restarted_at=None
    )])  # fmt: skip
    monkeypatch.setattr(stack, "revive", lambda name: starts.append(now[0]) or True)
    looked_after = Supervisor(stack)
    for moment in range(0, 2_000):
        now[0] = moment / 10
        looked_after.run_once()
    assert [round(start) for start in starts] == [0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181]
    now[0] += 1_000  # it ran well for long
    looked_after.run_once()
    now[0] += 1
    looked_after.run_once()
    assert len(starts) == 13, "the next one comes at once, and the wait after it is short again"


def test_a_process_that_cannot_be_started_does_not_keep_others_from_it(stack: LocalStack, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nsleep 600\n")
    program.chmod(0o700)
    stack.spawn("broken", [str(program)])
    stack.spawn("whole", SLEEPER)
    kill(stack, "broken")
    kill(stack, "whole")
    program.unlink()
    assert Supervisor(stack).run_once() == ["whole"]
    assert process(stack, "broken").state is ProcessState.DIED


def test_the_supervisor_of_a_stack_brings_back_services_and_processes_and_ends_first(stack: LocalStack) -> None:
    stack.start([Service.REDIS])
    stack.spawn("ours", SLEEPER)
    argv = [sys.executable, "-m", "pipeline.entrypoints.supervisor"]
    keeper = stack.spawn("supervisor", argv, {"CORRIGENDA_HOME": str(stack.root)})
    eventually(lambda: "supervisor_started" in keeper.log.read_text(), "the supervisor")
    for name in ("redis", "ours"):
        kill(stack, name)
        eventually(
            lambda name=name: process(stack, name).state is ProcessState.RUNNING,
            lambda: f"the restart; {keeper.log.read_text()}",
        )
    pids = [status.pid for status in stack.status()]
    stack.stop()
    assert stack.status() == []
    assert all(is_gone(pid) for pid in pids), "nothing was started again behind the stop"


def test_a_state_of_before_is_read(stack: LocalStack) -> None:
    stack.spawn("ours", SLEEPER)
    path = stack.root / "state.json"
    state = json.loads(path.read_text())
    for field in ("argv", "env", "restarts", "restarted_at"):
        del state["processes"][0][field]
    path.write_text(json.dumps(state))
    assert process(stack, "ours").restarts == 0


def test_nothing_that_is_shown_or_listed_holds_a_secret(stack: LocalStack) -> None:
    endpoints = stack.start([Service.REDIS, Service.POSTGRES])
    spawned = stack.spawn("ours", SLEEPER, {"TOKEN": SECRET})
    state = StateFolder(stack.root).load()
    assert state is not None
    passwords = {state.password, state.redis_password, SECRET} - {""}
    shown = [repr(state), str(state), repr(state.find("ours")), repr(endpoints), repr(stack.status()), repr(spawned)]
    shown += [Path(f"/proc/{status.pid}/cmdline").read_text() for status in stack.status()]
    for text in shown:
        assert not [password for password in passwords if password in text], text
    assert (stack.root / "state.json").stat().st_mode & 0o077 == 0


def test_an_ephemeral_stack_whose_owner_was_killed_goes_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import time; from infra.local import Service, ephemeral_stack\n"
        "with ephemeral_stack([Service.REDIS]) as stack: print(stack.root, flush=True); time.sleep(600)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    left = LocalStack(Path(owner.stdout.readline().strip()))
    redis = process(left, "redis")
    assert ephemeral.sweep(tmp_path) == [], "its owner lives"
    owner.kill()
    owner.communicate()
    assert redis.state is ProcessState.RUNNING
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ephemeral_stack([]):
        assert not left.root.exists()
    assert is_gone(redis.pid)
    assert list(tmp_path.iterdir()) == []


STUCK = """
import sys, time
from datetime import timedelta
from pathlib import Path
from pipeline.config import Settings
from pipeline.entrypoints.watched import watched
from pipeline.telemetry.health import Heartbeat
within = timedelta(seconds=float(sys.argv[2]))
with watched("ours", Settings(health_file=Path(sys.argv[1])), heartbeats=[Heartbeat("loop", within=within)]):
    time.sleep(600)
"""


@pytest.mark.parametrize(("within", "is_ended"), [("0", True), ("3600", False)])
def test_a_process_that_makes_no_progress_is_ended_and_started_again(
    within: str, is_ended: bool, stack: LocalStack
) -> None:
    file = health_file(stack.root, "ours")
    argv = [sys.executable, "-c", STUCK, str(file), within]
    before = stack.spawn("ours", argv, {"PYTHONPATH": str(ROOT)})
    eventually(file.exists, lambda: f"its address; {before.log.read_text()}")
    end_stuck(stack, StuckProcesses(stack.root))
    if not is_ended:
        assert process(stack, "ours").state is ProcessState.RUNNING
        return
    eventually(lambda: process(stack, "ours").state is ProcessState.DIED, "its end")
    assert Supervisor(stack).run_once() == ["ours"]
    assert process(stack, "ours").pid != before.pid
