"""The schema: up, down, equal to the tables; what its triggers and grants refuse; what its views say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from alembic.config import Config
from pytest_alembic.tests import (  # noqa: F401
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import Engine

from pipeline.adapters import schema
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.web.tables import metadata
from pipeline.domain.errors import Misconfigured, Unavailable
from tests.support.factories import make_request
from tests.support.paths import ROOT
from tests.support.stream_records import PARTITION, carrying, new_lineage, parsed, poll_of
from tests.support.waiting import eventually, patience

APP, AUDITOR = "corrigenda_app", "corrigenda_auditor"
KEPT = sorted(set(metadata.tables) - {"outbox"})
FINAL = ["audit_events", "gate_reports", "approvals", "edit_rows"]
"""Nobody who has taken on the role of the application may change these at all."""


@pytest.fixture
def alembic_config() -> Config:
    """Where the revisions are."""
    return schema.alembic_config()


@pytest.fixture
def alembic_engine(empty_postgres_url: str) -> Iterator[Engine]:
    """The database that pytest-alembic moves up and down."""
    engine = connect(empty_postgres_url, "")
    yield engine
    engine.dispose()


@pytest.fixture
def filled_url(postgres_url: str) -> str:
    """A migrated database with a lineage, an edit and a dead letter."""
    engine = connect(postgres_url, APP)
    SqlLineageStore(engine).create(new_lineage(), actor="cli:ada")
    intake = SqlIntakeStore(engine)
    claim = intake.take_partition(PARTITION)
    intake.record([poll_of(claim, [carrying(0, make_request("r1")), parsed(1, b"[]")])])
    engine.dispose()
    return postgres_url


def run_as(url: str, role: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        if role:
            connection.execute(f"SET ROLE {role}".encode())
        connection.execute(statement.encode())


def test_upgrading_twice_is_the_same_as_once(empty_postgres_url: str) -> None:
    assert schema.current(empty_postgres_url)[0] is None
    schema.upgrade(empty_postgres_url)
    schema.upgrade(empty_postgres_url)
    reached, newest = schema.current(empty_postgres_url)
    assert reached == newest is not None


def test_a_downgrade_refuses_while_there_is_history(filled_url: str) -> None:
    for revision in ("base", "0001"):
        with pytest.raises(Misconfigured, match=r"history|rows"):
            schema.downgrade(filled_url, revision)
    with psycopg.connect(filled_url) as connection:
        assert connection.execute("SELECT count(*) FROM edit_requests").fetchone() == (1,)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run_as(filled_url, "", "DELETE FROM audit_events")


def test_a_downgrade_of_tables_with_rows_names_them(postgres_url: str) -> None:
    run_as(postgres_url, APP, "INSERT INTO outbox (dedup_key, kind, payload) VALUES ('k', 'doorbell', '{}')")
    with pytest.raises(Misconfigured, match="outbox"):
        schema.downgrade(postgres_url, "base")


def test_an_empty_database_goes_down_to_nothing(postgres_url: str) -> None:
    schema.downgrade(postgres_url, "base")
    with psycopg.connect(postgres_url) as connection:
        left = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "UNION SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
    assert {name for (name,) in left} <= {"alembic_version", "alembic_version_pkc"}


def test_a_migrator_waits_for_another_one(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(postgres_url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(x'636f7272'::bigint)")
        code = "import sys; from pipeline.adapters.schema import upgrade; upgrade(sys.argv[1])"
        migrator = subprocess.Popen([sys.executable, "-c", code, postgres_url], cwd=ROOT)
        eventually(lambda: is_waited_for(holder), "the migrator to wait for the lock")
        assert migrator.poll() is None
        holder.rollback()
        assert migrator.wait(timeout=patience()) == 0


def is_waited_for(connection: psycopg.Connection) -> bool:
    """Whether somebody waits for an advisory lock in this database; other tests may hold some in theirs."""
    database = "(SELECT oid FROM pg_database WHERE datname = current_database())"
    query = f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = {database}"
    return connection.execute(query.encode()).fetchone() is not None


def test_a_wrong_password_and_a_missing_server_are_one_sentence(postgres_url: str) -> None:
    wrong = postgres_url.replace("://corrigenda:", "://corrigenda:not")
    with pytest.raises(Misconfigured, match="password") as refused:
        schema.upgrade(wrong)
    assert "not" + postgres_url.split(":")[2].split("@")[0] not in str(refused.value)
    with pytest.raises(Unavailable, match="does not answer"):
        schema.upgrade("postgresql://corrigenda:x@127.0.0.1:1/corrigenda")


def test_a_schema_of_a_newer_version_is_refused(postgres_url: str) -> None:
    run_as(postgres_url, "", "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Misconfigured, match="9999"):
        schema.upgrade(postgres_url)


@pytest.mark.parametrize("role", ["", APP])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_nobody_takes_rows_out_of_the_history(filled_url: str, role: str, statement: str) -> None:
    for table in KEPT:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run_as(filled_url, role, statement.format(table))


def test_lines_of_history_are_not_changed_by_their_owner_or_in_replica_mode(filled_url: str) -> None:
    change = "UPDATE audit_events SET actor = 'nobody'"
    for statement in (change, f"SET session_replication_role = replica; {change}"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            run_as(filled_url, "", statement)


@pytest.mark.parametrize("table", FINAL)
def test_the_application_cannot_change_what_is_final(filled_url: str, table: str) -> None:
    column = next(iter(metadata.tables[table].columns)).name
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
        run_as(filled_url, APP, f"UPDATE {table} SET {column} = {column}")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (a int)",
        "DROP TABLE edit_requests",
        "ALTER TABLE audit_events DISABLE TRIGGER ALL",
        "UPDATE edit_requests SET target_new = 'another'",
        "UPDATE snapshots SET digest = 'another'",
        "UPDATE dead_letters SET value = NULL",
        "CREATE ROLE mine",
    ],
)
def test_the_application_has_no_more_rights_than_it_needs(filled_url: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run_as(filled_url, APP, statement)


@pytest.mark.parametrize("table", ["edit_history", "lineage_history", "live_edits", "audit_events", "chain_heads"])
def test_an_auditor_reads_and_writes_nothing(filled_url: str, table: str) -> None:
    run_as(filled_url, AUDITOR, f"SELECT * FROM {table}")
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
        run_as(filled_url, AUDITOR, f"DELETE FROM {table}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run_as(filled_url, AUDITOR, "SELECT * FROM edit_requests")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ingest_offsets SET next_offset = 0",
        "UPDATE ingest_offsets SET epoch = epoch - 1",
        "UPDATE chain_heads SET seq = seq - 1",
    ],
)
def test_offsets_epochs_and_heads_never_fall(filled_url: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="only grow"):
        run_as(filled_url, APP, statement)


def test_every_view_is_described(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        described = connection.execute(
            "SELECT relname, obj_description(oid) FROM pg_class "
            "WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
        ).fetchall()
    assert {name for name, comment in described if "Example: SELECT" in comment} == {
        "edit_history",
        "lineage_history",
        "live_edits",
        "request_log",
        "edit_times",
        "snapshot_contents",
        "decisions",
        "live_history",
        "ledger_history",
        "folded_facts",
    }


def test_bringing_a_database_up_does_not_load_torch() -> None:
    code = "import pipeline.adapters.schema, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_model_tables_add_up_without_a_cycle() -> None:
    assert len(metadata.sorted_tables) == len(metadata.tables)
