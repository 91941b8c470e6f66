"""The benchmark of the HTTP API asks what it says, and no request reads more because a lineage is larger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from tests.benchmarks.http_api import requests
from tests.support.large_lineage import fill
from tests.support.store_rig import StoreRig
from tests.support.web_rig import WebRig


@contextmanager
def counted(web: WebRig) -> Iterator[list[int]]:
    """Count the statements of the API's login, and the rows that they return."""
    engine = web.parts.stores.people._engine
    found = [0, 0]

    def heard(connection: Any, cursor: Any, *rest: Any) -> None:
        found[0] += 1
        found[1] += max(cursor.rowcount, 0)

    event.listen(engine, "after_cursor_execute", heard)
    try:
        yield found
    finally:
        event.remove(engine, "after_cursor_execute", heard)


def test_a_request_costs_the_same_statements_and_rows_on_a_lineage_of_any_size(web: WebRig, rig: StoreRig) -> None:
    web = web.again(web_corrections_per_minute=1_000_000)
    costs = []
    for size in (256, 1_024):
        if size == 256:
            fill(rig, size)
        else:
            rig.wipe()
            rig.new_lineage()
            fill(rig, size)
        cost = {}
        for name, call in requests(web, rig).items():
            with counted(web) as found:
                call()
            cost[name] = tuple(found)
        costs.append(cost)
    assert costs[0] == costs[1]
