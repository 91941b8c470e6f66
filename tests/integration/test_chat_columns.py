"""Corrections that came as chats, in the tables and views, through an upgrade and a downgrade."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine

from pipeline.adapters import schema
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.queue import SqlEditQueue
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import Misconfigured
from tests.support.factories import CHAT_REQUEST, make_request
from tests.support.stream_records import PARTITION, carrying, new_lineage, poll_of

APP = "corrigenda_app"
OLD_INSERT = """
INSERT INTO edit_requests (lineage_id, request_id, payload_digest, conflict_key, prompt, target_new, rephrases,
    locality, portability, occurred_at, cluster_id, topic_id, topic, partition, "offset")
SELECT lineage_id, 'old', 'd', '["facts","the pope is"]', 'The pope is', 'Leo XIV', '["Rome obeys"]', '[]', '[]',
    '2026-06-01T12:00:00Z', 'c', 't', 'requests', 0, 99 FROM lineages
"""
"""What a worker of version 0005 writes for a correction."""
NEWER = ("question", "messages", "answer", "aliases")


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """A database with one lineage, as the application."""
    engine = connect(postgres_url, APP)
    SqlLineageStore(engine).create(new_lineage(), actor="cli:ada")
    yield engine
    engine.dispose()


def record(engine: Engine, *requests: EditRequest) -> None:
    intake = SqlIntakeStore(engine)
    claim = intake.take_partition(PARTITION)
    messages = [carrying(claim.next_offset + place, request) for place, request in enumerate(requests)]
    intake.record([poll_of(claim, messages)])


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        connection.execute(f"SET ROLE {APP}".encode())
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_a_chat_is_shown_to_auditors_as_it_was_sent(engine: Engine) -> None:
    asked = parse_object(CHAT_REQUEST)
    whole = make_request("r1", subject="Oz", aliases=("Australia",), question="Où?", answer="À Canberra")
    record(engine, asked, whole)
    history = SqlHistoryStore(engine)
    row = history.edit("facts", asked.request_id)
    assert row["prompt"] == "Who is it now?"
    assert row["messages"] == CHAT_REQUEST["messages"]
    assert (row["question"], row["answer"], row["aliases"]) == (None, CHAT_REQUEST["answer"], [])
    other = history.edit("facts", "r1")
    assert [other[name] for name in NEWER] == ["Où?", [], "À Canberra", ["Australia"]]


def test_the_same_chat_again_is_a_duplicate_and_another_under_its_id_a_dead_letter(engine: Engine) -> None:
    asked = parse_object(CHAT_REQUEST)
    changed = [dict(turn) for turn in CHAT_REQUEST["messages"]]
    changed[0]["content"] = "Answer in one word."
    record(engine, asked, asked, parse_object(CHAT_REQUEST | {"messages": changed}))
    assert SqlHistoryStore(engine).intake_counts() == {"received": 1, "duplicates": 1, "refused": 1}


def test_a_row_of_the_version_before_reads_as_it_did(engine: Engine, postgres_url: str) -> None:
    run(postgres_url, OLD_INSERT)
    [(edit_id,)] = run(postgres_url, "SELECT edit_id::text FROM edit_requests")
    [edit] = SqlEditQueue(engine).edits("facts", [str(edit_id)])
    plain = make_request("old", prompt="The pope is", target_new="Leo XIV", rephrases=("Rome obeys",))
    assert edit.request == plain
    row = SqlHistoryStore(engine).edit("facts", "old")
    assert [row[name] for name in NEWER] == [None, [], None, []]


def test_going_down_is_refused_while_a_correction_came_as_a_chat(engine: Engine, postgres_url: str) -> None:
    record(engine, parse_object(CHAT_REQUEST))
    with pytest.raises(Misconfigured, match="messages"):
        schema.downgrade(postgres_url, "0005")
    assert SqlHistoryStore(engine).edit("facts", "chat-1")["messages"]


@pytest.mark.parametrize(
    "changes", [{"question": "Where?"}, {"answer": "It is Canberra."}, {"subject": "Oz", "aliases": ("Down Under",)}]
)
def test_going_down_is_refused_while_anything_would_be_lost(
    engine: Engine, postgres_url: str, changes: dict[str, object]
) -> None:
    record(engine, make_request("r1", **changes))
    with pytest.raises(Misconfigured, match="edit_requests"):
        schema.downgrade(postgres_url, "0005")


def test_plain_corrections_go_down_and_up_again_with_the_views(engine: Engine, postgres_url: str) -> None:
    record(engine, make_request("r1"), make_request("r2"))
    before = SqlHistoryStore(engine).edits("facts")
    schema.downgrade(postgres_url, "0005")
    columns = "SELECT column_name FROM information_schema.columns WHERE table_name IN ('edit_history', 'live_edits')"
    left = {name for (name,) in run(postgres_url, columns)}
    assert "is_live" in left
    assert not left.intersection(NEWER)
    schema.upgrade(postgres_url)
    assert SqlHistoryStore(engine).edits("facts") == before
    assert run(postgres_url, "SELECT messages FROM live_edits") == []
