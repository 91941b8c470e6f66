"""Real Celery workers on a real Redis: what they start, and that nothing of it outlives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.local import LocalStack, Service, Supervisor
from pipeline.adapters.celery_doorbell import EDIT_LINEAGE, CeleryDoorbell
from pipeline.config import Settings
from pipeline.domain.errors import Unavailable
from tests.support.paths import ROOT
from tests.support.processes import stat
from tests.support.waiting import eventually, patience

CELERY = (sys.executable, "-m", "celery", "-A", "workers.app")
EDIT = ("-P", "prefork", "-c", "1", "-Q", "edits.0123456789ab,edits", "-n", "edit@test")


def environment(redis_url: str, home: Path) -> dict[str, str]:
    return os.environ | {"CORRIGENDA_REDIS_URL": redis_url, "CORRIGENDA_HOME": str(home)}


def answers(redis_url: str, home: Path) -> bool:
    """Whether a worker is in its loop: one whose pool process dies before gives up, as Celery has it."""
    ping = [*CELERY, "inspect", "ping", "--timeout", "5"]
    return subprocess.run(ping, cwd=ROOT, env=environment(redis_url, home), capture_output=True).returncode == 0


@contextmanager
def worker(redis_url: str, home: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, killed at the end if it still runs."""
    argv = [*CELERY, "worker", "-l", "INFO", *options]
    with (home / "worker.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, env=environment(redis_url, home), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def descendants(pid: int) -> set[int]:
    """Every living process that came from this one."""
    parents = {
        int(entry): int(fields[1]) for entry in os.listdir("/proc") if entry.isdigit() if (fields := stat(int(entry)))
    }
    found, frontier = set[int](), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def has_rank(pid: int) -> bool:
    """Whether a rank is among the descendants."""
    return any("workers.rank" in cmdline(child) for child in descendants(pid))


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.slow
def test_an_edit_worker_starts_its_rank_early_and_ends_it_on_sigterm(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path, *EDIT) as process:
        eventually(lambda: has_rank(process.pid), lambda: f"a rank; {(tmp_path / 'worker.log').read_text()}")
        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(patience()) == 0, (tmp_path / "worker.log").read_text()
        eventually(lambda: not any(stat(pid) for pid in started), "the end of all that was started")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "pool process"])
def test_no_rank_outlives_a_worker_or_its_pool_process(victim: str, redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path, *EDIT) as process:
        eventually(lambda: has_rank(process.pid), lambda: f"a rank; {(tmp_path / 'worker.log').read_text()}")
        eventually(lambda: answers(redis_url, tmp_path), "an answer of the worker")
        started = descendants(process.pid)
        ranks = {pid for pid in started if "workers.rank" in cmdline(pid)}
        owner = next(int(stat(pid)[1]) for pid in ranks)
        os.kill(process.pid if victim == "worker" else owner, signal.SIGKILL)
        gone = started if victim == "worker" else ranks
        eventually(lambda: not any(stat(pid) for pid in gone), "the end of what lost its parent")
        if victim == "pool process":
            eventually(lambda: has_rank(process.pid), "a rank of the new pool process")


@pytest.mark.slow
def test_an_edit_worker_hears_doorbells_of_a_redis_that_was_killed_and_started(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "stack", is_durable=False)
    log = tmp_path / "worker.log"
    try:
        url = stack.start([Service.REDIS]).redis_url
        bell = CeleryDoorbell(Settings(redis_url=SecretStr(url)))
        with worker(url, tmp_path, *EDIT) as process:
            for times in (1, 2, 3):

                def rings(times: int = times) -> bool:
                    with suppress(Unavailable):
                        bell.ring("facts", base_digest="0123456789ab")
                    return log.read_text().count(f"Task {EDIT_LINEAGE}") >= 3 * times

                eventually(rings, lambda: f"a doorbell to be heard; {log.read_text()}")
                os.kill(stack.status()[0].pid, signal.SIGKILL)
                eventually(lambda: Supervisor(stack).run_once() == ["redis"], "the restart")
            assert process.poll() is None, log.read_text()
        bell.close()
    finally:
        stack.stop()
