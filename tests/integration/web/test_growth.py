"""The benchmark of the HTTP API and the pages asks what it says; no request reads more because a lineage is larger."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from pipeline.adapters.sql.web.reading import _WAITING
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


def test_what_each_candidate_brought_is_counted_by_the_index_of_its_snapshot(rig: StoreRig) -> None:
    fill(rig, 1_024, batch_size=2)
    grow_old(rig)
    with rig.engine.begin() as connection:
        # So few rows would be read whole; of a hundred thousand, each candidate would read them all.
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(connection.scalars(text(f"EXPLAIN {_WAITING}"), {"limit": 51}))
    assert "ix_edit_rows_snapshot_id" in plan
