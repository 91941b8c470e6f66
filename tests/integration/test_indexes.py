"""Every index of the schema serves a statement that we run.

What the pages, the API, a batch, the relay and operators ask is planned once more by PostgreSQL as it is asked, by the
login that asks it, with tables that are said to be a thousand times as long as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from pipeline.adapters.logins import Login
from pipeline.adapters.sql.web.tables import metadata
from pipeline.adapters.sql.web.webhooks import SqlWebhookStore
from pipeline.domain.contract.webhooks import WebhookEvent
from pipeline.domain.ledger.upkeep import Resolving
from pipeline.domain.review.people import Role
from tests.benchmarks.http_api import requests
from tests.benchmarks.review_pages import grow_old
from tests.support.factories import make_edit, make_request
from tests.support.large_lineage import GUARD_NAMES, SUITE_KEYS, HoldingGroup, fill, one_batch
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.web_rig import WebRig

OF_LONG_QUEUES = {"ix_edit_requests_front", "ix_edit_requests_waiting_key"}
"""Of a queue as short as this one, a claim needs neither."""
CORRECTION = {"prompt": "The number 7 is", "target_new": "prime", "lineage": LINEAGE}
WAITING = 200
"""Corrections in the queue: of few, any index does."""
PLANNED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")
# Rows of tables that `fill` and the requests leave empty, so that there is something to plan for.
BESIDE = """
INSERT INTO dead_letters (cluster_id, topic_id, topic, partition, "offset", headers, error)
    SELECT 'c', 't', 'requests', 0, number, '[]', 'no JSON' FROM generate_series(1, 99) number;
INSERT INTO removals (lineage_id, actor, reason, status) SELECT lineage_id, 'cli:old (claimed)', '', 'failed'
    FROM lineages, generate_series(1, 99);
INSERT INTO removals (lineage_id, actor, reason, status, resolving)
    SELECT lineage_id, 'cli:old (claimed)', '', 'failed', '{"rekeys": true}' FROM lineages;
INSERT INTO webhooks (owner, url, events, secret)
    SELECT 'owner ' || number, 'https://there', ARRAY['edit.live'], 's' FROM generate_series(1, 99) number;
ANALYZE
"""
LONGER = """
SELECT pg_restore_relation_stats('schemaname', 'public', 'relname', relname::text, 'relpages', relpages,
                                 'reltuples', (1000 * reltuples)::real)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relpages > 0 AND reltuples > 0
"""
OF_AUDITORS = (
    "SELECT * FROM edit_history WHERE lineage = 'facts' AND lower(subject) = 'thing 7'",
    "SELECT * FROM request_log WHERE lineage = 'facts' AND prompt = 'fact 77'",
    "SELECT * FROM decisions WHERE lineage = 'facts' AND decided_at >= '2026-06-01' ORDER BY decided_at LIMIT 9",
)
INSIDE_FUNCTIONS = ("SELECT FROM submissions WHERE accepted_at < '2020-01-01'",)
"""What functions of the schema do, whose plans nobody sees from outside."""


class Plans:
    """The indexes that the planner uses for the statements that were run."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    @contextmanager
    def of(self, *engines: Engine) -> Iterator[None]:
        """Plan everything that passes through some engines, once more."""
        for engine in engines:
            event.listen(engine, "before_cursor_execute", self._heard)
        try:
            yield
        finally:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", self._heard)

    def _heard(self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.lstrip().upper().startswith(PLANNED):
            given = parameters[0] if many else parameters
            found = cursor.connection.cursor().execute(f"EXPLAIN (FORMAT JSON) {statement}", given).fetchone()
            self.add(found[0][0]["Plan"])

    def add(self, plan: Mapping[str, Any]) -> None:
        """Take a plan in."""
        todo = [plan]
        while todo:
            node = todo.pop()
            todo += node.get("Plans", ())
            self.used |= {node["Index Name"]} if "Index Name" in node else set()


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    made = StoreRig(url=postgres_url, folder=tmp_path)
    made.new_lineage()
    yield made
    made.close()


def test_each_index_is_used(rig: StoreRig, tmp_path: Path, pools_close: None) -> None:
    web = WebRig(rig.url, tmp_path, web_corrections_per_minute=1_000_000)
    fill(rig, 1_024, batch_size=4)
    grow_old(rig)
    rig.submit(*(make_request(f"waiting-{number}") for number in range(WAITING)))
    asked = requests(web, rig)
    for call in asked.values():
        call()
    for statement in BESIDE.split(";"):
        rig.query(statement)
    for name in metadata.tables:  # else it may count the rows again while we plan
        rig.query(f"ALTER TABLE {name} SET (autovacuum_enabled = false)")
    rig.query(LONGER)
    plans = Plans()
    with plans.of(*rig.engines.values(), web.parts.stores.people._engine):
        for call in asked.values():
            call()
        ask_the_rest(web, rig)
        rig.expire_lease()
        one_batch(rig, HoldingGroup(tmp_path))
    for query in OF_AUDITORS + INSIDE_FUNCTIONS:
        [row] = rig.query(f"EXPLAIN (FORMAT JSON) {query}")
        plans.add(row["QUERY PLAN"][0]["Plan"])
    ours = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    assert ours - plans.used - OF_LONG_QUEUES == set()


def ask_the_rest(web: WebRig, rig: StoreRig) -> None:
    """Ask what is neither a page nor a part of every batch."""
    client = web.client(Role.requester, name="desk")
    told = client.post("/v1/corrections", json=CORRECTION, headers={"Idempotency-Key": "key"})
    assert told.status_code == 202, told.text
    assert client.get("/v1/webhooks").status_code == 200
    of_thing = make_edit("x", subject="Thing 7", relation="coach")
    rig.queue.related_subjects(LINEAGE, [of_thing])
    rig.queue.active_keys(LINEAGE, SUITE_KEYS, removed_ids=())
    rig.queue.edited_names(LINEAGE, GUARD_NAMES)
    [edit] = rig.query("SELECT edit_id::text FROM edit_rows WHERE until_seq IS NULL ORDER BY place LIMIT 1")
    SqlWebhookStore(rig.engines[Login.control]).owe(
        edit["edit_id"], event=WebhookEvent.live, result_key="k", payload={"lineage": LINEAGE}
    )
    rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester (claimed)", reason="")
