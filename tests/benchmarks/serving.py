"""How many requests fail while snapshots are swapped under them, and how long an approved one takes to be served.

    python -m tests.benchmarks.serving --requests 10000 --swaps 20 --clients 4

A tiny model answers three tokens to each request, over HTTP. Prints JSON; `polls_to_served` is the time from the alias
to the first answer of the new snapshot, in intervals of the poll.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.openai_server import Served, running
from workers.serving.application import SNAPSHOT_HEADER

STEM = "the capital of Japan is"


class Load:
    """Clients that ask one after the other, until a number of requests was answered."""

    def __init__(self, served: Served, *, num_requests: int, num_clients: int) -> None:
        self._served, self._left = served, num_requests
        self._lock = threading.Lock()
        self.seconds: list[float] = []
        self.failures: Counter[str] = Counter()
        self.first_seen: dict[str, float] = {}
        self.threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    @property
    def num_answered(self) -> int:
        return len(self.seconds)

    def _ask(self) -> None:
        with self._served.client() as client:
            while self._takes_one():
                began = time.perf_counter()
                try:
                    raw = client.completions.with_raw_response.create(model="facts", prompt=STEM, max_tokens=3)
                except Exception as error:
                    self.failures[f"{type(error).__name__}: {error}"[:200]] += 1
                    continue
                now = time.perf_counter()
                self.first_seen.setdefault(raw.headers[SNAPSHOT_HEADER], now)
                self.seconds.append(now - began)

    def _takes_one(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0


def measure(folder: Path, *, num_requests: int, num_swaps: int, num_clients: int, interval: float) -> dict[str, Any]:
    """Swap snapshots at even distances of requests, and return the figures."""
    with running(Served(folder, interval=timedelta(seconds=interval))) as served:
        made = [served.histories["facts"].next() for _ in range(num_swaps + 1)]
        versions = [served.registry.add(one) for one in made]
        served.point("facts", versions[0], made[0])
        load = Load(served, num_requests=num_requests, num_clients=num_clients)
        began = time.perf_counter()
        for thread in load.threads:
            thread.start()
        pointed: dict[str, float] = {}
        for place, (version, one) in enumerate(zip(versions[1:], made[1:], strict=True), start=1):
            while load.num_answered < place * num_requests // (num_swaps + 2) and not load.failures:
                time.sleep(0.005)
            pointed[one.snapshot.snapshot_id] = time.perf_counter()
            served.point("facts", version, one)
        for thread in load.threads:
            thread.join()
        seconds = time.perf_counter() - began
    waits = [(load.first_seen[one] - moment) / interval for one, moment in pointed.items() if one in load.first_seen]
    return {
        "requests": num_requests,
        "failed": sum(load.failures.values()),
        "failures": dict(load.failures),
        "swaps": num_swaps,
        "snapshots_seen": len(load.first_seen),
        "clients": num_clients,
        "poll_interval_seconds": interval,
        "polls_to_served_p50": round(statistics.median(waits), 2),
        "polls_to_served_max": round(max(waits), 2),
        "request_ms_p50": round(1000 * statistics.median(load.seconds), 1),
        "request_ms_p95": round(1000 * sorted(load.seconds)[int(0.95 * len(load.seconds))], 1),
        "requests_per_second": round(num_requests / seconds, 1),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Print the figures; return 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--interval", type=float, default=2.0)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder),
            num_requests=options.requests,
            num_swaps=options.swaps,
            num_clients=options.clients,
            interval=options.interval,
        )
    print(json.dumps(found, indent=2))
    return int(found["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
