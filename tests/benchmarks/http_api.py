"""What an answer of the HTTP API or a page costs as the database grows.

`python -m tests.benchmarks.http_api [--sizes 1024 ...] [--times 100]`

Prints milliseconds a request at every number of active edits: the median, the 95th percentile, and the mean of CPU
time: of this process, in which the API runs with its client, and of PostgreSQL's processes. On a busy machine the time
tells how long a request waited too; the processor time tells what it costs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import quantiles

import psutil
import structlog

from infra.local import LocalStack, Service
from pipeline.adapters import schema
from pipeline.bootstrap import create_topics
from pipeline.domain.review.people import Role
from tests.benchmarks.growth import fresh
from tests.benchmarks.review_pages import grow_old, page_requests
from tests.support.large_lineage import fill, submit
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.web_rig import WebRig

SIZES = (1_024, 100_000)
TIMES = 100
"""Requests of each kind."""
WAITING = 1_000
"""Edits in the queue."""
WEBHOOKS = 3
"""Registrations of the one who lists them."""
RECEIVER = "https://93.184.216.34/hook"
"""Where webhooks would be told, had anything to be: an address, so that no name is looked up."""


def requests(web: WebRig, rig: StoreRig) -> Mapping[str, Callable[[], object]]:
    """What is asked, by what it is; each call is one request that has to succeed."""
    desk, auditor = web.client(Role.requester, name="desk"), web.client(Role.auditor, name="auditor")
    numbers: Iterator[int] = count()
    edits = rig.query("SELECT edit_id, request_id FROM edit_requests ORDER BY edit_id LIMIT 1")
    [counted] = rig.query("SELECT count(*) FROM edit_requests")
    half = rig.query("SELECT edit_id FROM edit_requests ORDER BY edit_id OFFSET %s LIMIT 1", counted["count"] // 2)

    def new() -> dict[str, str]:
        return {"prompt": f"The number {next(numbers)} is", "target_new": "prime", "lineage": LINEAGE}

    def feedback() -> dict[str, object]:
        asked = new()
        turns = [{"role": "user", "content": asked["prompt"]}, {"role": "assistant", "content": "even"}]
        return {"messages": turns, "correction": "It is prime.", "target_new": "prime", "lineage": LINEAGE}

    def webhook() -> str:
        answer = desk.post("/v1/webhooks", json={"url": RECEIVER})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    for _ in range(WEBHOOKS):
        webhook()
    receipt = good(desk.post("/v1/corrections", json=new()).json())["id"]
    return {
        "POST one correction": lambda: ok(desk.post("/v1/corrections", json=new())),
        "POST a hundred": lambda: ok(desk.post("/v1/corrections", json=[new() for _ in range(100)])),
        "POST feedback": lambda: ok(desk.post("/v1/feedback", json=feedback())),
        "GET webhooks, of which there are three": lambda: ok(desk.get("/v1/webhooks")),
        "POST a webhook, and DELETE it": lambda: ok(desk.delete(f"/v1/webhooks/{webhook()}")),
        "GET what was accepted": lambda: ok(desk.get(f"/v1/corrections/{receipt}")),
        "GET an old edit by its id": lambda: ok(auditor.get(f"/v1/corrections/{edits[0]['edit_id']}")),
        "GET it by its request id": lambda: ok(auditor.get(f"/v1/corrections/{edits[0]['request_id']}")),
        "GET the first page": lambda: ok(auditor.get("/v1/corrections")),
        "GET a page in the middle": lambda: ok(auditor.get(f"/v1/corrections?before={half[0]['edit_id']}")),
        "GET rejected ones, of which there are none": lambda: ok(auditor.get("/v1/corrections?status=rejected")),
        "GET one's own, of which there are none": lambda: ok(desk.get("/v1/corrections")),
        **page_requests(web, rig),
    }


def good(body: Mapping[str, str]) -> Mapping[str, str]:
    """Return an answer that is none of a problem."""
    assert "detail" not in body, body
    return body


def ok(answer: object) -> None:
    """Check that a request succeeded."""
    status = answer.status_code  # type: ignore[attr-defined]
    assert status in (200, 202, 204), answer.text  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one kind of request costs, in milliseconds."""

    median: float
    """From the call to the answer."""
    p95: float
    """The same of the slowest twentieth."""
    own_cpu: float
    """Processor time of this process, the mean of all."""
    database_cpu: float
    """Processor time of PostgreSQL's processes, the mean of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Database:
    """The processes of a PostgreSQL server."""

    pid: int
    """Of the process that began them."""

    def cpu_seconds(self) -> float:
        """Return the processor time of those that run; what a connection spent that has ended is not in it."""
        found = psutil.Process(self.pid)
        spent = [one.cpu_times() for one in (found, *found.children(recursive=True))]
        return sum(one.user + one.system for one in spent)


def measured(web: WebRig, rig: StoreRig, database: Database, *, times: int = TIMES) -> dict[str, Cost]:
    """What each kind of request costs."""
    return {name: _cost(call, database, times) for name, call in requests(web, rig).items()}


def _cost(call: Callable[[], object], database: Database, times: int) -> Cost:
    call()
    spent = []
    own, theirs = time.process_time(), database.cpu_seconds()
    for _ in range(times):
        began = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - began))
    own, theirs = time.process_time() - own, database.cpu_seconds() - theirs
    cuts = quantiles(spent, n=20, method="inclusive") if len(spent) > 1 else [spent[0]] * 19
    return Cost(median=cuts[9], p95=cuts[18], own_cpu=1000 * own / times, database_cpu=1000 * theirs / times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of active edits")
    parser.add_argument("--times", type=int, default=TIMES, help="requests of each kind")
    sizes, times = (given := parser.parse_args()).sizes, given.times
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    columns = []
    with tempfile.TemporaryDirectory(prefix="corrigenda-http-") as name:
        stack = LocalStack(Path(name) / "stack", is_durable=False)
        try:
            ends = stack.start([Service.POSTGRES, Service.KAFKA])
            [postgres] = [one for one in stack.status() if one.name == Service.POSTGRES]
            database = Database(pid=postgres.pid)
            for size in sizes:
                url = fresh(ends.database_url, f"http_{size}")
                schema.upgrade(url)
                rig = StoreRig(url=url, folder=Path(name))
                rig.new_lineage()
                fill(rig, size)
                grow_old(rig)
                submit(rig, WAITING, stem="waiting")
                web = WebRig(
                    url,
                    Path(name),
                    with_broker=True,
                    kafka_bootstrap=ends.kafka_bootstrap,
                    web_corrections_per_minute=10_000_000,
                )
                create_topics(web.settings)
                columns.append(measured(web, rig, database, times=times))
                rig.close()
        finally:
            stack.stop()
    heads = ("median", "p95", "own CPU", "database CPU")
    print(f"{'ms a request':46}" + "".join(f"{size:>13,} edits{'':22}" for size in sizes))
    print(" " * 46 + "".join(f"{head:>13}" if head == heads[-1] else f"{head:>9}" for head in heads) * len(sizes))
    for what in columns[0]:
        figures = [column[what] for column in columns]
        print(
            f"{what:46}"
            + "".join(f"{one.median:9.1f}{one.p95:9.1f}{one.own_cpu:9.1f}{one.database_cpu:13.1f}" for one in figures)
        )


if __name__ == "__main__":
    main()
