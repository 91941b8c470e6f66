"""What an idle embedded stack costs: memory and processor time of each of its processes and their children.

`python -m tests.benchmarks.idle_stack --home .corrigenda --seconds 600` looks at a stack that runs, and starts nothing.
Processor seconds do not depend on what else the machine does. Memory is the proportional set size: a page that
several processes share counts once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.local import LocalStack, ProcessState


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one process of a stack and all its children have taken so far."""

    cpu_seconds: float
    """Of a processor, in the program and in the kernel, since they started."""
    num_bytes: int
    """Their memory now, as proportional set size."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each process, and one for all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".corrigenda"), help="folder of a stack that runs")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to look")
    options = parser.parse_args(arguments)
    pids = {one.name: one.pid for one in LocalStack(options.home).status() if one.state is ProcessState.RUNNING}
    before, began = {name: cost(pid) for name, pid in pids.items()}, time.monotonic()
    time.sleep(options.seconds)
    after, seconds = {name: cost(pid) for name, pid in pids.items()}, time.monotonic() - began
    for line in table(before, after, seconds=seconds):
        sys.stdout.write(line + "\n")
    return 0


def cost(pid: int) -> Cost:
    """Return what a process and its children have taken; what ended meanwhile counts no more."""
    cpu, memory = 0.0, 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        try:
            times = process.cpu_times()
            memory += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
        cpu += times.user + times.system
    return Cost(cpu_seconds=cpu, num_bytes=memory)


def table(before: Mapping[str, Cost], after: Mapping[str, Cost], *, seconds: float) -> list[str]:
    """Return a line for each process, with its part of a core and its memory at the end, and one for all together."""
    rows = {
        name: (100 * (after[name].cpu_seconds - before[name].cpu_seconds) / seconds, after[name].num_bytes / 1e9)
        for name in after
    }
    rows["together"] = (sum(cpu for cpu, _ in rows.values()), sum(memory for _, memory in rows.values()))
    return [f"{name:30} {cpu:6.2f} % of a core  {memory:5.2f} GB" for name, (cpu, memory) in rows.items()]


if __name__ == "__main__":
    sys.exit(main())
