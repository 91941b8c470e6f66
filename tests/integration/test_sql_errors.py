"""What goes wrong in the database reaches callers as our own errors, in one sentence without a password."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, select, text

from pipeline.adapters.sql.database.engine import connect, parsed_url, transaction
from pipeline.adapters.sql.database.tables import chain_heads, lineages
from pipeline.domain.errors import CorrigendaError, InvalidInput, LoginRefused, Misconfigured, Unavailable
from tests.support.waiting import patience

ROLE = "corrigenda_app"


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """A migrated database, as the application."""
    engine = connect(postgres_url, ROLE)
    yield engine
    engine.dispose()


def password_of(url: str) -> str:
    password = parsed_url(url).password
    assert isinstance(password, str)
    return password


def raising(state: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'it said so' USING ERRCODE = '{state}'; END $$"


@pytest.mark.parametrize(
    ("statement", "kind", "says"),
    [
        (raising("53100"), Unavailable, "disk full"),
        (raising("53300"), Unavailable, "it said so"),
        (raising("40001"), Unavailable, "try again"),
        (raising("40P01"), Unavailable, "try again"),
        (raising("57P01"), Unavailable, "it said so"),
        (raising("28000"), LoginRefused, "let us in"),
        (raising("XX000"), CorrigendaError, "XX000"),
        ("SET statement_timeout = 1; SELECT pg_sleep(5)", Unavailable, "statement timeout"),
        ("SELECT * FROM no_such_table", Misconfigured, "corrigenda up"),
        ("DELETE FROM audit_events", Misconfigured, "may not"),
        ("SELECT 'x'::uuid", InvalidInput, "uuid"),
        ("nonsense", CorrigendaError, "syntax error"),
    ],
)
def test_every_refusal_is_one_of_our_errors(
    engine: Engine, postgres_url: str, statement: str, kind: type[CorrigendaError], says: str
) -> None:
    with pytest.raises(CorrigendaError, match=says) as raised, transaction(engine) as connection:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    assert type(raised.value) is kind
    assert raised.value.retryable is (kind in (Unavailable, LoginRefused))
    assert "\n" not in str(raised.value)
    assert password_of(postgres_url) not in str(raised.value)


def broken_statement(connection: Connection) -> None:
    connection.execute(select(chain_heads).where(chain_heads.c.chain == object()))


def unstorable_text(connection: Connection) -> None:
    connection.execute(select(lineages).where(lineages.c.name == "a\x00b"))


def two_rows_for_one(connection: Connection) -> None:
    connection.execute(text("SELECT * FROM generate_series(1, 2)")).one()


def raw_driver_error(connection: Connection) -> None:
    connection.connection.cursor().execute("SELECT 1/0")


@pytest.mark.parametrize("misuse", [broken_statement, unstorable_text, two_rows_for_one, raw_driver_error])
def test_no_exception_of_the_libraries_leaks(engine: Engine, misuse: Callable[[Connection], None]) -> None:
    with pytest.raises(CorrigendaError), transaction(engine) as connection:
        misuse(connection)


def test_a_statement_with_more_parameters_than_there_may_be_is_not_tried_again(engine: Engine) -> None:
    with pytest.raises(CorrigendaError, match="parameters") as raised, transaction(engine) as connection:
        connection.execute(select(chain_heads).where(chain_heads.c.seq.in_(range(70_000))))
    assert not raised.value.retryable


def test_our_own_errors_pass_through_and_roll_back(engine: Engine) -> None:
    def write_and_refuse() -> None:
        with transaction(engine) as connection:
            connection.execute(chain_heads.insert().values(chain="c", seq=0, hash="0"))
            raise InvalidInput("not so")

    with pytest.raises(InvalidInput, match="not so"):
        write_and_refuse()
    with transaction(engine) as connection:
        assert connection.execute(select(chain_heads)).all() == []


@pytest.mark.parametrize(
    ("change", "role", "kind", "says"),
    [
        ({"password": "guessed"}, ROLE, LoginRefused, "password"),
        ({"password": None}, ROLE, LoginRefused, "password"),
        ({"username": "nobody"}, ROLE, LoginRefused, "user 'nobody' or its password$"),
        ({"username": "corrigenda_intake"}, ROLE, LoginRefused, "its password; the migration job .*DATABASE_URL"),
        ({"database": "nowhere"}, ROLE, Misconfigured, "nowhere"),
        ({}, "no_such_role", Misconfigured, "no_such_role"),
        ({"port": 1}, ROLE, Unavailable, "does not answer"),
        ({"host": "host.invalid"}, ROLE, Unavailable, "does not answer"),
    ],
)
def test_a_database_that_cannot_be_used_says_why(
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    role: str,
    kind: type[CorrigendaError],
    says: str,
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    url: Any = parsed_url(postgres_url)
    engine = connect(url._replace(**change).render_as_string(hide_password=False), role)
    with pytest.raises(kind, match=says) as raised, transaction(engine):
        pass
    assert "guessed" not in str(raised.value)
    assert password_of(postgres_url) not in str(raised.value)
    engine.dispose()


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "postgresql://u:s3cret@host:port/name", "mysql://h/d"])
def test_an_url_that_is_none_of_postgresql_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(Misconfigured, match="URL") as raised:
        connect(url, ROLE)
    assert "s3cret" not in str(raised.value)


def test_a_role_that_is_no_name_is_refused() -> None:
    with pytest.raises(Misconfigured, match="role"):
        connect("postgresql://user@host/name", "app; DROP TABLE")


def test_connections_act_as_the_application_in_utc(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(text("RESET ROLE"))
        found = connection.execute(text("SELECT current_user, current_setting('TimeZone')")).one()
    assert tuple(found) == (ROLE, "UTC")


def test_a_connection_that_was_cut_is_replaced(engine: Engine, postgres_url: str) -> None:
    def work_on_a_cut_connection() -> None:
        with transaction(engine) as connection:
            cut_all(postgres_url)
            connection.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        work_on_a_cut_connection()
    with transaction(engine) as connection:
        cut = connection.scalar(text("SELECT 1"))
    assert cut == 1


def cut_all(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_two_transactions_that_wait_for_each_other_end_as_one_retryable_error(engine: Engine) -> None:
    with transaction(engine) as connection:
        for chain in ("a", "b"):
            connection.execute(chain_heads.insert().values(chain=chain, seq=0, hash="0"))
    barrier, outcomes = threading.Barrier(2, timeout=patience()), []

    def cross(first: str, second: str) -> None:
        try:
            with transaction(engine) as connection:
                connection.execute(select(chain_heads).where(chain_heads.c.chain == first).with_for_update()).one()
                barrier.wait()
                connection.execute(select(chain_heads).where(chain_heads.c.chain == second).with_for_update()).one()
            outcomes.append("done")
        except Unavailable as error:
            outcomes.append("retry" if error.retryable else "lost")

    threads = [threading.Thread(target=cross, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience())
    assert sorted(outcomes) == ["done", "retry"]
