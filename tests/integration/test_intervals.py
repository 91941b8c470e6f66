"""Revision 0004: a database that 0003 filled keeps every active set of its history, its views, and its digests."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pipeline.adapters import schema
from pipeline.adapters.file_artifacts import FileArtifacts
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.snapshots import SqlSnapshotStore
from pipeline.domain.errors import Misconfigured
from pipeline.domain.snapshots import snapshot_digest
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.waiting import eventually

BASE = "b" * 64
HISTORY = (
    ({"a", "b", "c"}, {"a", "b", "c"}, True),
    ({"a", "b", "d"}, {"d"}, True),
    ({"a", "d"}, set(), False),
    ({"a", "d", "e", "f"}, {"e", "f"}, True),
    ({"a", "c", "e", "f"}, {"c"}, False),
    ({"a", "c", "e", "f", "g"}, {"g"}, True),
)
"""Of each snapshot: what it holds, what it brought in, and whether a batch made it.

`d` supersedes `c`, `b` is reverted, and the rejection of `d` brings `c` back.
"""

ACTIVE_BEFORE = "SELECT s.seq, h.edit_id::text FROM snapshot_edits h JOIN snapshots s USING (snapshot_id)"
ACTIVE = (
    "SELECT s.seq, r.edit_id::text FROM snapshots s JOIN edit_rows r "
    "ON r.lineage_id = s.lineage_id AND int4range(r.since_seq, r.until_seq) @> s.seq"
)
VIEWS = {
    "edit_history": "request_id",
    "lineage_history": "seq",
    "live_edits": "request_id",
}


class Filled:
    """A lineage of six snapshots, written by raw SQL into the schema of 0003."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.owner = psycopg.connect(url, row_factory=dict_row, autocommit=True)
        self.edits = {name: str(uuid.uuid4()) for name in "abcdefg"}
        self.snapshots = [str(uuid.uuid4()) for _ in HISTORY]

    def query(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        cursor = self.owner.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def insert(self, table: str, **row: Any) -> None:
        values = [json.dumps(value) if isinstance(value, dict | list) else value for value in row.values()]
        columns = ", ".join(f'"{name}"' for name in row)
        self.query(f"INSERT INTO {table} ({columns}) VALUES ({', '.join(['%s'] * len(row))})", *values)

    def fill(self) -> None:
        lineage_id = str(uuid.uuid4())
        editor: dict[str, Any] = {"inner_params": ["a.weight"], "subject_params": []}
        file = {"uri": "x", "digest": "0" * 64, "num_bytes": 1}
        common = {"task": "causal", "base_ref": "/base", "base_digest": BASE, "editor_digest": "e", "policy": {}}
        self.insert("lineages", lineage_id=lineage_id, name=LINEAGE, editor=editor, prior=file, baseline=file, **common)
        for place, (name, edit_id) in enumerate(self.edits.items()):
            self.insert_edit(lineage_id, name, edit_id, place)
        deltas: list[str] = []
        for place, (held, brought, is_batch) in enumerate(HISTORY):
            deltas.append(f"{place:064}")
            self.insert_snapshot(lineage_id, place, deltas, held=held, brought=brought, is_batch=is_batch)
        head, champion = self.snapshots[-1], self.snapshots[1]
        pointers = "head_snapshot_id = %s, champion_snapshot_id = %s, seq = %s"
        self.query(f"UPDATE lineages SET {pointers}", head, champion, len(HISTORY))
        self.query("UPDATE edit_requests SET status = 'reverted' WHERE request_id = 'b'")
        self.query("UPDATE edit_requests SET status = 'rejected' WHERE request_id = 'd'")
        self.insert("edit_requests", **self.edit_row(lineage_id, "waits", str(uuid.uuid4()), 59), status="received")

    def edit_row(self, lineage_id: str, name: str, edit_id: str, place: int) -> dict[str, Any]:
        told = {"request_id": name, "payload_digest": name, "conflict_key": f'["facts","{name}"]', "prompt": name}
        origin = {"cluster_id": "c", "topic_id": "t", "topic": "t", "partition": 0, "offset": place}
        lists: dict[str, Any] = {"rephrases": [], "locality": [], "portability": []}
        at = {"occurred_at": f"2026-06-01T12:{place:02}:00Z", "target_new": "x"}
        return {"edit_id": edit_id, "lineage_id": lineage_id, **told, **origin, **lists, **at}

    def insert_edit(self, lineage_id: str, name: str, edit_id: str, place: int) -> None:
        self.insert("edit_requests", **self.edit_row(lineage_id, name, edit_id, place), status="snapshotted")

    def insert_snapshot(
        self, lineage_id: str, place: int, deltas: list[str], *, held: set[str], brought: set[str], is_batch: bool
    ) -> None:
        snapshot_id, batch_id, report_id = self.snapshots[place], str(uuid.uuid4()), str(uuid.uuid4())
        digest = snapshot_digest(base_digest=BASE, delta_digests=deltas)
        if is_batch:
            self.insert("edit_batches", batch_id=batch_id, lineage_id=lineage_id, ordinal=place + 1, lease_epoch=1)
        report: dict[str, Any] = {"rows": [], "edits": [], "measurements": {"edits": []}}
        report_of = {"snapshot_digest": digest, "verdict": "passed", "policy_digest": "p", "probe_set_digest": "q"}
        self.insert("gate_reports", gate_report_id=report_id, lineage_id=lineage_id, report=report, **report_of)
        self.insert(
            "snapshots",
            snapshot_id=snapshot_id,
            lineage_id=lineage_id,
            seq=place + 1,
            parent_id=self.snapshots[place - 1] if place else None,
            basis="parent",
            delta={"uri": f"delta-{place}", "digest": deltas[-1], "num_bytes": 1},
            delta_digest=deltas[-1],
            digest=digest,
            gate_report_id=report_id,
            batch_id=batch_id if is_batch else None,
            lease_epoch=1,
        )
        for name in held:
            self.insert("snapshot_edits", snapshot_id=snapshot_id, edit_id=self.edits[name])
        for name in brought:
            rows = {"uri": f"rows-{place}", "digest": f"{place:064}", "num_bytes": 1}
            self.insert("edit_rows", edit_id=self.edits[name], snapshot_id=snapshot_id, rows=rows)

    def sets(self, query: str) -> dict[int, set[str]]:
        names = {edit_id: name for name, edit_id in self.edits.items()}
        found: dict[int, set[str]] = {}
        for row in self.query(query):
            found.setdefault(row["seq"], set()).add(names[row["edit_id"]])
        return found

    def views(self) -> dict[str, list[dict[str, Any]]]:
        return {name: self.query(f"SELECT * FROM {name} ORDER BY {key}") for name, key in VIEWS.items()}


NOTHING_NEWER = {"question": None, "messages": [], "answer": None, "aliases": []}
"""What views of edits show of rows from before there were such columns."""


@pytest.fixture
def filled(empty_postgres_url: str) -> Any:
    """A database of 0003 with history."""
    schema.upgrade(empty_postgres_url, "0003")
    made = Filled(empty_postgres_url)
    made.fill()
    yield made
    made.owner.close()


def test_every_old_snapshot_holds_what_it_held_and_the_views_say_the_same(filled: Filled) -> None:
    expected = {seq: held for seq, (held, _, _) in enumerate(HISTORY, start=1)}
    assert filled.sets(ACTIVE_BEFORE) == expected
    before = filled.views()
    schema.upgrade(filled.url)
    assert filled.sets(ACTIVE) == expected
    for view in ("edit_history", "live_edits"):
        before[view] = [row | NOTHING_NEWER for row in before[view]]
    assert filled.views() == before
    sizes = [row["num_active"] for row in filled.query("SELECT num_active FROM snapshots ORDER BY seq")]
    assert sizes == [len(held) for held, _, _ in HISTORY]


def test_a_batch_that_commits_while_the_upgrade_begins_is_part_of_it(filled: Filled) -> None:
    [lineage] = filled.query("SELECT lineage_id::text FROM lineages")
    deltas = [f"{place:064}" for place in range(len(HISTORY) + 1)]
    filled.snapshots.append(str(uuid.uuid4()))
    watching, filled.owner = filled.owner, psycopg.connect(filled.url, row_factory=dict_row)
    filled.insert_snapshot(lineage["lineage_id"], len(HISTORY), deltas, held={"a", "g"}, brought=set(), is_batch=False)
    filled.query("UPDATE lineages SET head_snapshot_id = %s, seq = %s", filled.snapshots[-1], len(filled.snapshots))
    with ThreadPoolExecutor(1) as aside, closing(filled.owner) as committing:
        upgrade = aside.submit(schema.upgrade, filled.url)
        own = "(SELECT oid FROM pg_database WHERE datname = current_database())"
        waits = f"SELECT FROM pg_locks WHERE NOT granted AND database = {own}"
        eventually(lambda: watching.execute(waits).fetchall(), "the upgrade to wait")
        committing.commit()
        filled.owner = watching
        upgrade.result()
    assert filled.sets(ACTIVE)[len(HISTORY) + 1] == {"a", "g"}
    assert [row["num_active"] for row in filled.query("SELECT num_active FROM snapshots ORDER BY seq")][-1] == 2


def test_an_edit_that_came_back_has_two_intervals_and_places_count_activations(filled: Filled) -> None:
    schema.upgrade(filled.url)
    names = {edit_id: name for name, edit_id in filled.edits.items()}
    query = "SELECT place, edit_id::text, since_seq, until_seq, rows ->> 'uri' AS rows FROM edit_rows ORDER BY place"
    rows = [(names[row.pop("edit_id")], *row.values()) for row in filled.query(query)]
    assert rows == [
        ("a", 1, 1, None, "rows-0"),
        ("b", 2, 1, 3, "rows-0"),
        ("c", 3, 1, 2, "rows-0"),
        ("d", 4, 2, 5, "rows-1"),
        ("e", 5, 4, None, "rows-3"),
        ("f", 6, 4, None, "rows-3"),
        ("c", 7, 5, None, "rows-4"),
        ("g", 8, 6, None, "rows-5"),
    ]
    assert filled.query("SELECT num_activations FROM lineages") == [{"num_activations": 8}]


def test_the_ledger_of_an_old_snapshot_names_the_files_that_it_was_made_of(filled: Filled, tmp_path: Any) -> None:
    schema.upgrade(filled.url)
    engine = connect(filled.url, "corrigenda_app")
    for name in ("prior", "baseline"):
        (tmp_path / name).write_bytes(b"x")
        kept = FileArtifacts(tmp_path / "artifacts").put(tmp_path / name)
        value = json.dumps({"uri": kept.uri, "digest": kept.digest, "num_bytes": 1})
        filled.query(f"UPDATE lineages SET {name} = %s", value)
    store = SqlSnapshotStore(engine, FileArtifacts(tmp_path / "artifacts"))
    names = {edit_id: name for name, edit_id in filled.edits.items()}
    for snapshot_id, wanted in ((filled.snapshots[1], ["ab rows-0", "d rows-1"]), (filled.snapshots[4], OF_FIFTH)):
        plan = store.ledger_plan(LINEAGE, snapshot_id=snapshot_id)
        runs = [("".join(names[edit_id] for edit_id in run.edit_ids), run.file.path) for run in plan.rows]
        assert [f"{edits} {path.rsplit('/', 1)[1]}" for edits, path in runs] == wanted
    path = store.digest_path(LINEAGE, filled.snapshots[4])
    assert (len(path.listed), path.chained) == (5, ())
    assert path.digest == store.snapshot(LINEAGE, "5").digest
    assert SqlLineageStore(engine).lineage(LINEAGE).head_digest == store.snapshot(LINEAGE, "head").digest
    engine.dispose()


OF_FIFTH = ["a rows-0", "ef rows-3", "c rows-4"]


def test_going_down_gives_every_snapshot_its_copy_back(filled: Filled) -> None:
    tables = {"snapshot_edits": "snapshot_id, edit_id", "edit_rows": "snapshot_id, edit_id"}
    before = {name: filled.query(f"SELECT * FROM {name} ORDER BY {key}") for name, key in tables.items()}
    views = filled.views()
    schema.upgrade(filled.url)
    schema.downgrade(filled.url, "0003")
    assert {name: filled.query(f"SELECT * FROM {name} ORDER BY {key}") for name, key in tables.items()} == before
    assert filled.views() == views


def test_going_down_is_refused_once_a_snapshot_has_a_digest_that_0003_cannot_check(
    postgres_url: str, tmp_path: Any
) -> None:
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    rig.correct("a")
    rig.commit_batch(rig.acquire())
    before = rig.contents()
    with pytest.raises(Misconfigured, match="history"):
        schema.downgrade(postgres_url, "0003")
    assert rig.contents() == before
    rig.close()


def test_a_history_with_a_hole_is_not_migrated(filled: Filled) -> None:
    filled.query("ALTER TABLE snapshot_edits DISABLE TRIGGER keeps_history")
    where = "snapshot_id = %s AND edit_id = %s"
    filled.query(f"DELETE FROM snapshot_edits WHERE {where}", filled.snapshots[2], filled.edits["a"])
    with pytest.raises(Misconfigured, match="1 edits without"):
        schema.upgrade(filled.url)
    assert schema.current(filled.url)[0] == "0003"


def test_an_activation_ends_once(postgres_url: str, tmp_path: Any) -> None:
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    rig.correct("a")
    rig.commit_batch(rig.acquire())
    rig.query("UPDATE edit_rows SET until_seq = 2")
    for until in ("NULL", "3"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            rig.query(f"UPDATE edit_rows SET until_seq = {until}")
    rig.query("UPDATE edit_rows SET rows = '{}'")
    rig.close()
