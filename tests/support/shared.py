"""What the workers of one test run share: a folder, in which costly things are made once by whoever asks first.

    base = made_once("taught-llama", lambda folder: teach("llama", folder))

Without pytest-xdist the only process is its own worker.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

VARIABLE = "CORRIGENDA_TESTS_SHARED"
"""Environment variable with the folder's path; workers inherit it from the process that starts them."""
NUM_REDIS_DATABASES = 16
MEMORY = Path("/dev/shm")
"""A file system in memory, where MLflow's database need not wait for a disk at every change."""
MOST_BYTES = 4 << 30
"""What a run's folder may come to: the stack's data, models that were taught, editors that were trained."""


def open_folder() -> Path:
    """Make the folder of this run, in memory if there is room.

    The process that starts the workers calls this before it starts them.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MOST_BYTES
    folder = Path(tempfile.mkdtemp(prefix="corrigenda-tests-", dir=MEMORY if has_room else None))
    os.environ[VARIABLE] = str(folder)
    return folder


def remove_folder() -> None:
    """Remove the folder of this run, after the last test."""
    shutil.rmtree(os.environ.pop(VARIABLE), ignore_errors=True)


def shared_folder() -> Path:
    """Return the folder of this run."""
    return Path(os.environ[VARIABLE])


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder that `make` fills; other workers wait while one of them makes it.

    Args:
        name: of the folder, unique in the run.
        make: fills the folder that it is given, which exists and is empty. If it raises, the next caller tries again.
    """
    folder = shared_folder() / name
    mark = folder.with_name(f"{name}.made")
    with folder.with_name(f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            mark.touch()
    return folder


def own_redis_databases() -> range:
    """Return the numbers of the Redis databases that belong to this worker alone. The stack itself uses number 0."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return range(1 + worker, NUM_REDIS_DATABASES, num_workers)
