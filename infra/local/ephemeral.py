"""A stack that lives as long as a block of code, in a folder of its own."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.records import ALL, Service
from infra.local.stack import LocalStack


@contextmanager
def ephemeral_stack(services: Iterable[Service] = ALL) -> Iterator[LocalStack]:
    """Start the services in a fresh temporary folder; on the way out stops everything and removes the folder."""
    root = Path(tempfile.mkdtemp(prefix="corrigenda-"))
    stack = LocalStack(root, is_durable=False)
    try:
        stack.start(services)
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(root, ignore_errors=True)
