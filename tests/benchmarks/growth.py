"""What the bookkeeping of a batch costs as a lineage grows: `python -m tests.benchmarks.growth [--sizes 1024 ...]`.

Prints milliseconds a call at every number of active edits, on PostgreSQL of the embedded stack and with a fake of the
ranks; how much more a batch costs at the largest than at the smallest; and the rows that are written for an edit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median

import structlog

from infra.local import LocalStack, Service
from pipeline.adapters import schema
from pipeline.domain.lineages import Lease
from tests.support.factories import make_request
from tests.support.large_lineage import SUITE_KEYS, Counted, HoldingGroup, fill, one_batch
from tests.support.store_rig import LINEAGE, StoreRig

SIZES = (1_024, 10_016, 100_000)
BATCH = 32
NAMES = tuple(f"thing {place}" for place in range(800))
"""As many as the list of guards has; most of them are edited."""
TIMES = 9
"""Measurements of each call; the median is printed."""


def calls(rig: StoreRig, lease: Lease) -> dict[str, Callable[[], object]]:
    """What is called once a batch, a trial or a turn; the two plans only when the ranks do not hold the head."""
    head_id, queue, store = rig.lineage().head_id, rig.queue, rig.snapshots
    return {
        "retention_sample (a trial)": lambda: queue.retention_sample(LINEAGE, seed="s", removed_ids=()),
        "active_keys (a trial)": lambda: queue.active_keys(LINEAGE, SUITE_KEYS, removed_ids=()),
        "edited_names (a batch)": lambda: queue.edited_names(LINEAGE, NAMES),
        "next_removal, none owed (a turn)": lambda: queue.next_removal(lease),
        "lineage() (twice a batch)": rig.lineage,
        "claim_batch, empty queue (a turn)": lambda: queue.claim_batch(lease, limit=BATCH, max_wait=timedelta()),
        "load_plan (only to load)": lambda: store.load_plan(LINEAGE, snapshot_id=head_id),
        "ledger_plan (only to load)": lambda: store.ledger_plan(LINEAGE, snapshot_id=head_id),
    }


def milliseconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    call()
    spent = []
    for _ in range(TIMES):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return 1000 * median(spent)


def batches(rig: StoreRig, folder: Path) -> tuple[float, float]:
    """(milliseconds of a batch of 32 from its claim to what is told of it, rows written an edit from its intake on)."""
    spent, group = [], HoldingGroup(folder)
    with Counted(rig) as counted:
        for number in range(TIMES):
            rig.submit(*(make_request(f"{number}-{place}") for place in range(BATCH)))
            began = time.perf_counter()
            one_batch(rig, group)
            spent.append(time.perf_counter() - began)
    return 1000 * median(spent), counted.written.total() / (TIMES * BATCH)


def measured(url: str, folder: Path, size: int) -> dict[str, float]:
    """Every figure at one number of active edits, on a fresh database."""
    schema.upgrade(url)
    rig = StoreRig(url=url, folder=folder)
    rig.new_lineage()
    fill(rig, size)
    lease = rig.acquire()
    found = {name: milliseconds(call) for name, call in calls(rig, lease).items()}
    rig.leases.release(lease)
    found["a batch of 32: claim, compose, commit, announce"], found["rows written an edit"] = batches(rig, folder)
    rig.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of active edits")
    sizes = parser.parse_args().sizes
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    columns = []
    with tempfile.TemporaryDirectory(prefix="corrigenda-growth-") as name:
        stack = LocalStack(Path(name) / "stack", is_durable=False)
        try:
            url = stack.start([Service.POSTGRES]).database_url
            for size in sizes:
                folder = Path(name) / str(size)
                folder.mkdir()
                columns.append(measured(fresh(url, f"growth_{size}"), folder, size))
        finally:
            stack.stop()
    print(f"{'ms a call':50}" + "".join(f"{size:>12,}" for size in sizes))
    for what in columns[0]:
        print(f"{what:50}" + "".join(f"{column[what]:12.1f}" for column in columns))
    batch = [column["a batch of 32: claim, compose, commit, announce"] for column in columns]
    print(f"a batch at {sizes[-1]:,} against {sizes[0]:,}: {batch[-1] / batch[0]:.2f} x")


def fresh(url: str, name: str) -> str:
    """URL of a new database on the same server."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name}".encode())
    return url.rpartition("/")[0] + f"/{name}"


if __name__ == "__main__":
    main()
