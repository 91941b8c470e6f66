"""How long an approval takes to be served: from its commit in the database to the first answer with its snapshot.

    python -m tests.benchmarks.approving --swaps 20 --interval 2

Everything on the way is the real thing, on an embedded stack of its own: the approval is a transaction, the control
worker's relay points the alias in MLflow, and `corrigenda serve` follows it there, fetches the version, checks its
files and the database's word, and answers over HTTP. Only the model is tiny. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from infra.local import LocalStack
from pipeline.adapters.mlflow.errors import log_in
from pipeline.domain.review.approvals import Decision
from pipeline.domain.snapshots import Snapshot
from pipeline.entrypoints.processes import start_control_worker, start_stack
from tests.support.paths import ROOT
from tests.support.published import Publisher
from tests.support.served import STEM, chatting_base
from tests.support.store_rig import StoreRig
from tests.support.waiting import eventually
from workers.serving.application import SNAPSHOT_HEADER

LINEAGE = "facts"


def measure(folder: Path, *, num_swaps: int, interval: float) -> dict[str, Any]:
    """Approve one snapshot after the other on a stack in a folder, and return the figures."""
    try:
        stack, settings = start_stack(folder / "stack")
        ends = stack.endpoints()
        log_in(ends.mlflow_username, ends.mlflow_password)
        start_control_worker(stack, settings)
        rig = StoreRig(url=ends.database_url, folder=settings.home)
        publisher = Publisher(rig=rig, name=LINEAGE, base=chatting_base(folder / "base"), mlflow_uri=ends.mlflow_uri)
        made = [publisher.candidate(is_registered=False) for _ in range(num_swaps + 1)]
        eventually(lambda: _are_registered(rig), "a model version of every snapshot")
        publisher.decide(made[0], Decision.approved, points=False)
        with _serving(settings.home, interval) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            eventually(lambda: _answers_with(client, made[0]), "the first snapshot to be served")
            waits = [_swapped(publisher, client, one, interval=interval) for one in made[1:]]
        rig.close()
    finally:
        LocalStack(folder / "stack").stop()
    return figures(waits, interval=interval)


def figures(waits: Sequence[float], *, interval: float) -> dict[str, Any]:
    """Return what the seconds from approval to answer come to, also in intervals of the follower's poll."""
    return {
        "swaps": len(waits),
        "poll_interval_seconds": interval,
        "seconds_to_served_p50": round(statistics.median(waits), 2),
        "seconds_to_served_max": round(max(waits), 2),
        "polls_to_served_p50": round(statistics.median(waits) / interval, 2),
        "polls_to_served_max": round(max(waits) / interval, 2),
    }


def _swapped(publisher: Publisher, client: openai.OpenAI, snapshot: Snapshot, *, interval: float) -> float:
    """Approve a snapshot at some time between two polls; return the seconds from the commit to its first answer."""
    time.sleep(random.uniform(0, interval))  # noqa: S311 - no secret
    publisher.decide(snapshot, Decision.approved, points=False)
    committed = time.perf_counter()
    eventually(lambda: _answers_with(client, snapshot), "the approved snapshot to be served")
    return time.perf_counter() - committed


def _answers_with(client: openai.OpenAI, snapshot: Snapshot) -> bool:
    try:
        raw = client.completions.with_raw_response.create(model=LINEAGE, prompt=STEM, max_tokens=3)
    except openai.APIStatusError:
        return False  # nothing is served yet
    return raw.headers[SNAPSHOT_HEADER] == snapshot.snapshot_id


def _are_registered(rig: StoreRig) -> bool:
    return not rig.query("SELECT 1 AS one FROM snapshots WHERE registry_version IS NULL")


@contextmanager
def _serving(home: Path, interval: float) -> Iterator[str]:
    """Run `corrigenda serve` for the length of a block; yields its address."""
    argv = [sys.executable, "-m", "pipeline.entrypoints.cli", "serve", "--port", "0", "--poll", str(interval)]
    environment = {**os.environ, "CORRIGENDA_HOME": str(home), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().removeprefix("serving ").removesuffix("/v1\n")
        finally:
            os.killpg(server.pid, 15)


def main(words: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two polls of the follower")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="corrigenda-approving-") as folder:
        found = measure(Path(folder), num_swaps=options.swaps, interval=options.interval)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
