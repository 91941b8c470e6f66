"""A history that somebody with every right has changed: the first wrong line is named (F17)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import Engine

from pipeline.adapters.sql import audit as sql_audit
from pipeline.adapters.sql.audit import AuditLine, SqlAuditStore, append, append_all, lock_chains
from pipeline.adapters.sql.database.engine import connect, transaction
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.domain.audit import GENESIS_HASH, SYSTEM_CHAIN, AuditAction, AuditEvent, event_hash
from pipeline.domain.errors import InvalidInput
from tests.support.stream_records import new_lineage

CHAIN, LENGTH = "facts", 12


@pytest.fixture
def engine(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A database with a lineage whose chain has twelve lines, read five at a time."""
    monkeypatch.setattr(sql_audit, "PAGE", 5)
    engine = connect(postgres_url, "corrigenda_app")
    SqlLineageStore(engine).create(new_lineage(CHAIN), actor="cli:ada")
    with transaction(engine) as connection:
        append_all(connection, [line(CHAIN, number) for number in range(2, LENGTH + 1)])
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> SqlAuditStore:
    """What checks the chain; it is whole so far."""
    store = SqlAuditStore(engine)
    assert store.head(CHAIN)[0] == LENGTH
    assert store.verify(CHAIN) is None
    return store


def line(chain: str, number: int) -> AuditLine:
    payload = {"number": number, "share": 0.1 * number, "text": "Zürich \u2028 \x00"}
    return AuditLine(
        chain=chain, actor="intake", action=AuditAction.edit_received, subject=f"edit-{number}", payload=payload
    )


def tamper(url: str, *statements: str) -> None:
    """Change the history as nobody but a superuser can: with its guards switched off."""
    with psycopg.connect(url) as connection:
        for table in ("audit_events", "chain_heads", "lineages"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
        for statement in statements:
            assert connection.execute(statement.encode()).rowcount > 0, statement


@pytest.mark.parametrize(
    "change",
    [
        "actor = 'somebody'",
        "subject = 'another'",
        "at = at + interval '1 microsecond'",
        "action = 'edit:rejected'",
        "action = 'edit:forged'",
        "payload = '{}'",
        "payload = 'no json'",
        "payload = payload || ' '",
        "payload = '{\"number\":99999999999999999999}'",
        "payload = repeat('[', 100000)",
        "hash = repeat('0', 64)",
        "prev_hash = repeat('f', 64)",
    ],
)
@pytest.mark.parametrize("seq", [1, 6, LENGTH])
def test_a_changed_line_is_named(store: SqlAuditStore, postgres_url: str, change: str, seq: int) -> None:
    tamper(postgres_url, f"UPDATE audit_events SET {change} WHERE chain = '{CHAIN}' AND seq = {seq}")
    found = store.verify(CHAIN)
    assert found is not None
    assert (found.chain, found.seq) == (CHAIN, seq)
    assert len(store.events(CHAIN)) == LENGTH


@pytest.mark.parametrize("seq", [1, 5, 7])
def test_a_deleted_line_is_named(store: SqlAuditStore, postgres_url: str, seq: int) -> None:
    tamper(postgres_url, f"DELETE FROM audit_events WHERE chain = '{CHAIN}' AND seq = {seq}")
    found = store.verify(CHAIN)
    assert found is not None
    assert (found.seq, found.reason) == (seq, f"missing; the next line is {seq + 1}")


@pytest.mark.parametrize("kept", [0, 3, 10, LENGTH - 1])
def test_a_tail_that_was_cut_is_named_by_the_recorded_head(store: SqlAuditStore, postgres_url: str, kept: int) -> None:
    tamper(postgres_url, f"DELETE FROM audit_events WHERE chain = '{CHAIN}' AND seq > {kept}")
    found = store.verify(CHAIN)
    assert found is not None
    assert (found.seq, found.reason) == (kept + 1, f"missing; the recorded head is line {LENGTH}")


def test_a_lineage_whose_whole_chain_is_gone_is_still_checked(store: SqlAuditStore, postgres_url: str) -> None:
    tamper(postgres_url, f"DELETE FROM audit_events WHERE chain = '{CHAIN}'", "DELETE FROM chain_heads")
    assert CHAIN in store.chains()
    found = store.verify(CHAIN)
    assert found is not None
    assert (found.seq, found.reason) == (1, "missing; the lineage exists and has no history")


@pytest.mark.parametrize(
    ("change", "seq"),
    [
        ("DELETE FROM chain_heads WHERE chain = 'facts'", LENGTH),
        ("UPDATE chain_heads SET seq = 4 WHERE chain = 'facts'", 5),
        ("UPDATE chain_heads SET hash = repeat('0', 64) WHERE chain = 'facts'", LENGTH),
    ],
)
def test_a_head_that_disagrees_is_a_break(store: SqlAuditStore, postgres_url: str, change: str, seq: int) -> None:
    tamper(postgres_url, change)
    found = store.verify(CHAIN)
    assert found is not None
    assert found.seq == seq


def rewritten(event: AuditEvent, prev_hash: str, **changes: str) -> AuditEvent:
    """The line as a forger writes it who knows how hashes are made."""
    body = {name: getattr(event, name) for name in ("chain", "seq", "at", "actor", "action", "subject", "payload")}
    body |= {"prev_hash": prev_hash, **changes}
    return AuditEvent(**body, hash=event_hash(**body))


def test_a_chain_rewritten_from_a_line_on_disagrees_with_its_head(store: SqlAuditStore, postgres_url: str) -> None:
    lines = store.events(CHAIN)
    forged = [rewritten(lines[8], lines[7].hash, actor="somebody")]
    for event in lines[9:]:
        forged.append(rewritten(event, forged[-1].hash))
    tamper(postgres_url, f"UPDATE audit_events SET prev_hash = seq::text WHERE chain = '{CHAIN}' AND seq > 8")
    tamper(postgres_url, *(_rewrite(event) for event in forged))
    found = store.verify(CHAIN)
    assert found is not None
    assert (found.seq, found.reason) == (LENGTH, "has another hash than the recorded head")


def test_an_action_that_nobody_knows_is_a_break_even_with_the_right_hash(
    store: SqlAuditStore, postgres_url: str
) -> None:
    last = store.events(CHAIN)[-1]
    forged = rewritten(last, last.prev_hash, action="edit:forged")
    tamper(postgres_url, _rewrite(forged), f"UPDATE chain_heads SET hash = '{forged.hash}' WHERE chain = '{CHAIN}'")
    found = store.verify(CHAIN)
    assert found is not None
    assert (found.seq, found.reason) == (LENGTH, "expected a known action, got 'edit:forged'")


def _rewrite(event: AuditEvent) -> str:
    return (
        f"UPDATE audit_events SET actor = '{event.actor}', action = '{event.action}', prev_hash = '{event.prev_hash}', "
        f"hash = '{event.hash}' WHERE chain = '{event.chain}' AND seq = {event.seq}"
    )


def test_a_transaction_that_fails_leaves_no_line(engine: Engine, store: SqlAuditStore) -> None:
    def fail_later() -> None:
        with transaction(engine) as connection:
            append_all(connection, [line(CHAIN, 13)])
            raise InvalidInput("something later in the transaction")

    with pytest.raises(InvalidInput, match="later"):
        fail_later()
    assert store.head(CHAIN)[0] == LENGTH
    assert store.verify(CHAIN) is None


def test_a_payload_without_a_canonical_form_is_refused_before_it_is_written(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="canonical"), transaction(engine) as connection:
        append(
            connection,
            chain=CHAIN,
            actor="intake",
            action=AuditAction.edit_received,
            subject="edit",
            payload={"n": float("nan")},
        )


def test_writers_of_several_chains_neither_deadlock_nor_leave_gaps(engine: Engine, store: SqlAuditStore) -> None:
    names = ["facts", "alpha", "zeta", SYSTEM_CHAIN]

    def write(number: int) -> None:
        turned = names[number % 4 :] + names[: number % 4]
        with transaction(engine) as connection:
            append_all(connection, [line(chain, number) for chain in turned])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert [store.verify(chain) for chain in store.chains()] == [None] * 4
    assert store.head("zeta")[0] == 40
    times = [event.at for event in store.events("zeta")]
    assert times == sorted(times)


def test_locking_a_chain_that_does_not_exist_begins_it(engine: Engine) -> None:
    with transaction(engine) as connection:
        assert lock_chains(connection, ["new", CHAIN])["new"] == (0, GENESIS_HASH)
