"""The figures of an idle stack, of this process in place of one."""

import os

from tests.benchmarks.idle_stack import Cost, cost, table


def test_a_process_costs_its_processor_time_and_its_memory() -> None:
    found = cost(os.getpid())
    assert 0 < found.cpu_seconds <= sum(os.times()[:4])
    assert found.num_bytes > 1_000_000
    assert cost(2**22 + 1) == Cost(cpu_seconds=0.0, num_bytes=0)


def test_a_line_a_process_and_one_for_all() -> None:
    before = {"web": Cost(cpu_seconds=1.0, num_bytes=0), "redis": Cost(cpu_seconds=5.0, num_bytes=0)}
    after = {"web": Cost(cpu_seconds=2.0, num_bytes=5 * 10**8), "redis": Cost(cpu_seconds=5.5, num_bytes=10**9)}
    said = [line.split() for line in table(before, after, seconds=10.0)]
    assert [(name, cpu, memory) for name, cpu, *_, memory, _ in said] == [
        ("web", "10.00", "0.50"),
        ("redis", "5.00", "1.00"),
        ("together", "15.00", "1.50"),
    ]
