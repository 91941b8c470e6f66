"""The benchmark of the HTTP API and the pages asks what it says; no request reads more because a lineage is larger."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import TextClause, event, text

from pipeline.adapters.sql.web.reading import _BROUGHT, _WAITING
from pipeline.entrypoints.web.limits import BackPressure
from tests.benchmarks.http_api import requests
from tests.benchmarks.review_pages import grow_old
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


def test_a_request_costs_the_same_statements_and_rows_on_a_lineage_of_any_size(
    web: WebRig, rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked once; after a second it would be asked again.
    monkeypatch.setattr(BackPressure, "REMEMBERED", math.inf)
    web = web.again(web_corrections_per_minute=1_000_000)
    costs = []
    for size in (256, 1_024):
        if size != 256:
            rig.wipe()
            rig.new_lineage()
        # A page holds 50 snapshots.
        fill(rig, size, batch_size=2)
        grow_old(rig)
        cost = {}
        for name, call in requests(web, rig).items():
            with counted(web) as found:
                call()
            cost[name] = tuple(found)
        costs.append(cost)
    assert {name: (costs[0][name], costs[1][name]) for name in costs[0] if costs[0][name] != costs[1][name]} == {}


def test_what_waits_and_what_a_candidate_brought_are_read_by_an_index(rig: StoreRig) -> None:
    size = 1_024
    fill(rig, size, batch_size=2)
    grow_old(rig)
    [top] = rig.query("SELECT lineage_id, seq FROM snapshots ORDER BY seq DESC LIMIT 1")
    assert 0 < rows_read(rig, _WAITING, limit=51) < size / 2
    assert 0 < rows_read(rig, _BROUGHT, lineage_id=top["lineage_id"], seq=top["seq"], limit=50) < size / 2


def rows_read(rig: StoreRig, query: TextClause, **values: Any) -> int:
    """Count the rows that a query looks at in tables, where it may read no table whole that has an index."""
    with rig.engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        [found] = connection.scalar(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}"), values)
    return _read(found["Plan"])


def _read(plan: dict[str, Any]) -> int:
    seen = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
    own = int(seen * plan["Actual Loops"]) if "Relation Name" in plan else 0
    return own + sum(_read(below) for below in plan.get("Plans", ()))
