"""Intake under load and in a crowd, and what the history says of what came in."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, text

from pipeline.adapters.sql.audit import SqlAuditStore
from pipeline.adapters.sql.database.engine import connect, transaction
from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.domain.audit import SYSTEM_CHAIN
from pipeline.domain.contract.messages import ParsedMessage, PartitionKey
from pipeline.domain.edits import Probe
from pipeline.domain.errors import UnknownLineage, UnknownRecord
from tests.support.factories import make_request
from tests.support.stream_records import PARTITION, carrying, message, new_lineage, parsed, poll_of


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """A database with one lineage, as the application."""
    engine = connect(postgres_url, "corrigenda_app")
    SqlLineageStore(engine).create(new_lineage(), actor="cli:ada")
    yield engine
    engine.dispose()


def partition(number: int) -> PartitionKey:
    return PartitionKey(cluster_id="cluster", topic_id="topic-id", topic="edits.requests.v1", partition=number)


def test_a_large_poll_takes_a_bounded_number_of_statements(engine: Engine) -> None:
    intake, statements = SqlIntakeStore(engine), []
    claim = intake.take_partition(PARTITION)
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    counts = intake.record([poll_of(claim, [carrying(n, make_request(f"r{n}")) for n in range(500)])])
    assert counts.received == 500
    assert len(statements) < 30
    assert SqlAuditStore(engine).verify("facts") is None


def test_the_databases_clock_and_the_setting_say_what_lies_ahead(engine: Engine) -> None:
    now = datetime.now(UTC)

    def received(max_ahead: timedelta, name: str, occurred_at: datetime, offset: int) -> int:
        intake = SqlIntakeStore(engine, max_ahead=max_ahead)
        claim = intake.take_partition(PARTITION)
        request = make_request(name, occurred_at=occurred_at)
        return intake.record([poll_of(claim, [carrying(offset, request)])]).received

    assert received(timedelta(minutes=1), "soon", now + timedelta(minutes=30), 0) == 0
    assert received(timedelta(hours=1), "soon", now + timedelta(minutes=30), 1) == 1
    # What was recorded under another setting is known again: it is a duplicate, and no dead letter.
    assert received(timedelta(0), "soon", now + timedelta(minutes=30), 2) == 0
    assert received(timedelta(0), "far", datetime.max.replace(tzinfo=UTC), 3) == 0
    assert received(timedelta(0), "long ago", datetime.min.replace(tzinfo=UTC), 4) == 1
    assert SqlHistoryStore(engine).intake_counts() == {"received": 2, "duplicates": 1, "refused": 2}


def test_one_request_sent_to_every_partition_at_once_is_one_edit(engine: Engine) -> None:
    intake = SqlIntakeStore(engine)

    def deliver(number: int) -> int:
        where = partition(number)
        claim = intake.take_partition(where)
        order = range(20) if number % 2 else reversed(range(20))
        requests = [carrying(n, make_request(f"r{r}"), partition=where) for n, r in enumerate(order)]
        return intake.record([poll_of(claim, requests)]).received

    with ThreadPoolExecutor(6) as pool:
        received = list(pool.map(deliver, range(6)))
    assert sum(received) == 20
    assert SqlHistoryStore(engine).intake_counts() == {"received": 20, "duplicates": 100, "refused": 0}
    assert SqlAuditStore(engine).verify("facts") is None


def test_what_postgresql_could_choke_on_is_kept_or_refused_and_skips_no_neighbour(engine: Engine) -> None:
    intake = SqlIntakeStore(engine)
    claim = intake.take_partition(PARTITION)
    headers = (("nul\x00", b"\x00"), ("lone\ud800", b""))
    raw = message(1, b"\x00" * 10_000_000)
    odd = ParsedMessage(
        message=type(raw)(partition=PARTITION, offset=1, key=b"\x00", value=raw.value, headers=headers),
        request=None,
        refusal="it holds \x00 and \ud800",
    )
    swollen = unicodedata.lookup("ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM") * 1999
    wide = make_request("wide", prompt=f"x{swollen}", rephrases=("'; --", "%s :x"))
    poll = poll_of(claim, [carrying(0, make_request("r0")), odd, carrying(2, wide), parsed(3, b'{"a": "\\u0000"}')])
    counts = intake.record([poll])
    assert (counts.received, counts.refused) == (2, 2)
    letter = intake.dead_letters()[-1]
    assert (letter.offset, letter.error, letter.key) == (1, "it holds \\x00 and \\ud800", b"\x00")
    assert letter.value == raw.value
    assert SqlAuditStore(engine).verify(SYSTEM_CHAIN) is None


def test_a_request_is_stored_as_it_was_sent(engine: Engine) -> None:
    request = make_request(
        "r1",
        subject="Österreich",
        relation="capital",
        rephrases=("a", "b"),
        locality=(Probe(prompt="p"), Probe(prompt="q", target="t")),
        portability=(Probe(prompt="r", target="s"),),
        source="crm",
        submitted_by="ada",
    )
    intake = SqlIntakeStore(engine)
    intake.record([poll_of(intake.take_partition(PARTITION), [carrying(41, request)])])
    with transaction(engine) as connection:
        row = connection.execute(text("SELECT * FROM edit_requests")).mappings().one()
    said = request.as_json()
    for name in ("prompt", "subject", "relation", "target_new", "rephrases", "locality", "portability", "source"):
        assert row[name] == said[name]
    assert row["occurred_at"] == request.occurred_at
    assert (row["topic"], row["partition"], row["offset"]) == (PARTITION.topic, 0, 41)
    assert (row["payload_digest"], row["conflict_key"]) == (request.payload_digest, request.conflict_key)


def test_the_history_of_a_waiting_edit_names_its_state_and_its_lines(engine: Engine) -> None:
    intake, history = SqlIntakeStore(engine), SqlHistoryStore(engine)
    intake.record([poll_of(intake.take_partition(PARTITION), [carrying(n, make_request(f"r{n}")) for n in range(3)])])
    rows = history.edits("facts", limit=2)
    assert [row["request_id"] for row in rows] == ["r1", "r2"]
    assert {(row["status"], row["state"], row["snapshot_seq"]) for row in rows} == {("received", "queued", None)}
    assert history.edits("facts", status="queued") == history.edits("facts", status="received")
    assert history.edits("facts", status="rejected") == ()
    by_request, by_id = history.edit("facts", "r1"), history.edit("facts", rows[0]["edit_id"])
    assert by_request == by_id
    (line,) = by_request["events"]
    assert (line["seq"], line["action"], line["payload"]["request_id"]) == (3, "edit:received", "r1")


def test_the_history_names_what_it_does_not_know(engine: Engine) -> None:
    history = SqlHistoryStore(engine)
    with pytest.raises(UnknownRecord, match="r9"):
        history.edit("facts", "r9")
    for ask in (history.edits, history.approvals):
        with pytest.raises(UnknownLineage, match="nothing"):
            ask("nothing")
    assert history.approvals("facts") == ()
    assert history.now().tzinfo is not None
