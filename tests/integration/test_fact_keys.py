"""Keys of facts of the version before become those of today, and back, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import psycopg
import pytest
from sqlalchemy import Engine

from pipeline.adapters import schema
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import Misconfigured
from pipeline.domain.prompts import ChatTurn
from tests.support.factories import make_request
from tests.support.stream_records import PARTITION, carrying, new_lineage, poll_of

revision = import_module("migrations.versions.0010_fact_keys")
BEFORE = revision.down_revision
TURNS = (
    ChatTurn(role="user", content="Wie viele Ma\u00dfe hat das?"),
    ChatTurn(role="assistant", content="Keine."),
    ChatTurn(role="user", content="Und nun?"),
)
REQUESTS = (
    make_request("plain", prompt="The capital of Australia is"),
    make_request("power", prompt="The value of 2\u2075 is"),
    make_request("number", prompt="The value of 25 is"),
    make_request("sharp", prompt="x", subject="Ma\u00dfen", relation="plural of"),
    make_request("double", prompt="x", subject="Massen", relation="plural of"),
    make_request("chat", prompt="Und nun?", messages=TURNS),
    make_request("wide", prompt="\uff34\uff2f\uff2b\uff39\uff2f is in"),
    make_request("cut", prompt="TOKYO is in"),
    make_request("line", prompt="\u0645\u062d\u0640\u0645\u062f was born in"),
)


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """A database with one lineage."""
    engine = connect(postgres_url, "corrigenda_app")
    SqlLineageStore(engine).create(new_lineage(), actor="cli:ada")
    yield engine
    engine.dispose()


def record(engine: Engine, requests: tuple[EditRequest, ...]) -> None:
    intake = SqlIntakeStore(engine)
    claim = intake.take_partition(PARTITION)
    first = claim.next_offset
    intake.record([poll_of(claim, [carrying(first + n, request) for n, request in enumerate(requests)])])


def keys(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("SELECT request_id, conflict_key FROM edit_requests").fetchall())


def test_old_keys_become_those_that_new_corrections_get_and_back(engine: Engine, postgres_url: str) -> None:
    record(engine, REQUESTS)
    today = {request.request_id: request.conflict_key for request in REQUESTS}
    assert keys(postgres_url) == today
    schema.downgrade(postgres_url, BEFORE)
    old = keys(postgres_url)
    assert old == {request.request_id: request.fact_key(revision.folded_before) for request in REQUESTS}
    assert old["power"] == old["number"]
    assert old["sharp"] == old["double"]
    schema.upgrade(postgres_url)
    assert keys(postgres_url) == today
    assert len({today[name] for name in ("power", "number", "sharp", "double", "chat")}) == 5
    assert today["wide"] == today["cut"]


def test_a_downgrade_that_would_make_one_fact_of_two_active_ones_is_refused(engine: Engine, postgres_url: str) -> None:
    record(engine, REQUESTS)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE edit_requests SET status = 'snapshotted' WHERE request_id IN ('power', 'number')")
    before = keys(postgres_url)
    with pytest.raises(Misconfigured, match="the value of 25 is"):
        schema.downgrade(postgres_url, BEFORE)
    assert keys(postgres_url) == before


def test_keys_of_more_corrections_than_a_page_holds_are_all_made_again(engine: Engine, postgres_url: str) -> None:
    powers = tuple(make_request(f"r{n}", prompt=f"The value of {n}\u2075 is") for n in range(2 * revision.PAGE + 1))
    record(engine, powers)
    schema.downgrade(postgres_url, BEFORE)
    assert keys(postgres_url)["r2"] == make_request("r2", prompt="the value of 25 is").conflict_key
    schema.upgrade(postgres_url)
    assert keys(postgres_url) == {request.request_id: request.conflict_key for request in powers}
