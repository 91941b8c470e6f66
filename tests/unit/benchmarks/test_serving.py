"""The benchmark of serving, in small: swaps under load lose no request."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.serving import measure


def test_no_request_fails_while_snapshots_are_swapped_under_it(tmp_path: Path) -> None:
    found = measure(tmp_path, num_requests=60, num_swaps=3, num_clients=2, interval=0.02)
    assert found["failures"] == {}
    assert found["snapshots_seen"] >= 3
    assert found["polls_to_served_max"] > 0
