"""A stack that lives as long as a block of code, in a folder of its own."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from infra.local.processes import ProcessId, is_alive, process_id
from infra.local.records import ALL, Service
from infra.local.stack import LocalStack

PREFIX = "corrigenda-stack-"
OWNER = "owner.json"


@contextmanager
def ephemeral_stack(services: Iterable[Service] = ALL) -> Iterator[LocalStack]:
    """Start the services in a fresh temporary folder; on the way out stops everything and removes the folder.

    Stacks whose owner was killed are stopped and removed first.
    """
    sweep(Path(tempfile.gettempdir()))
    root = Path(tempfile.mkdtemp(prefix=PREFIX))
    (root / OWNER).write_text(json.dumps(asdict(process_id(os.getpid()))))
    stack = LocalStack(root, is_durable=False)
    try:
        stack.start(services)
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(root, ignore_errors=True)


def sweep(folder: Path) -> list[Path]:
    """Stop and remove ephemeral stacks whose owner has ended; return their folders."""
    left = [root for root in folder.glob(f"{PREFIX}*") if _is_left(root)]
    for root in left:
        LocalStack(root).stop()
        shutil.rmtree(root, ignore_errors=True)
    return left


def _is_left(root: Path) -> bool:
    try:
        if root.lstat().st_uid != os.geteuid():
            return False
        return not is_alive(ProcessId(**json.loads((root / OWNER).read_text())))
    except (OSError, ValueError, TypeError):
        return False  # it is being made or removed, or it is no stack of ours
