"""What each login of the database may not do, tried as that login on a real PostgreSQL, and how they are let in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors
from pydantic import SecretStr

from infra.local import Endpoints, LocalStack, ProcessState, ProcessStatus, Service
from infra.local.records import derived_password
from pipeline.adapters import schema
from pipeline.adapters.logins import Login, give_database, let_in
from pipeline.adapters.sql.audit import AuditLine, SqlAuditStore, append_all
from pipeline.adapters.sql.database.engine import connect, parsed_url, transaction
from pipeline.bootstrap import stores
from pipeline.config import Settings
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import BaseSpec
from pipeline.entrypoints import consumer, migrate, processes
from pipeline.entrypoints.local_settings import with_endpoints
from tests.support.intake_parts import intake_settings
from tests.support.store_rig import StoreRig

SECRET = "of-this-test"

EVERYBODY = [
    "UPDATE audit_events SET actor = 'nobody'",
    "DELETE FROM audit_events",
    "TRUNCATE audit_events",
    "ALTER TABLE audit_events DISABLE TRIGGER ALL",
    "ALTER TABLE audit_events DISABLE TRIGGER keeps_history",
    "SET session_replication_role = replica",
    "DROP TABLE audit_events",
    "DELETE FROM chain_heads",
    "DELETE FROM edit_requests",
    "DELETE FROM snapshots",
    "SET ROLE corrigenda",
    "SET ROLE corrigenda_app",
    "SET ROLE corrigenda_reviewer",
    "SET SESSION AUTHORIZATION corrigenda",
    "ALTER ROLE corrigenda PASSWORD NULL",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "CREATE ROLE mine SUPERUSER",
    "GRANT corrigenda TO CURRENT_USER",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY chain_heads FROM PROGRAM 'true'",
    "COPY (SELECT 1) TO '/tmp/corrigenda-mine'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT lo_import('/etc/hostname')",
    "SELECT rolpassword FROM pg_authid",
    "SELECT passwd FROM pg_shadow",
    "CREATE TABLE mine (a int)",
    "CREATE TEMPORARY TABLE mine (a int)",
    "CREATE SCHEMA mine",
    "CREATE DATABASE mine",
    "DROP EXTENSION plpgsql CASCADE",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TRIGGER mine BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION refuse_change()",
    "CREATE RULE mine AS ON INSERT TO audit_events DO INSTEAD NOTHING",
    "ALTER SYSTEM SET log_statement = 'all'",
    "SELECT pg_reload_conf()",
    "UPDATE alembic_version SET version_num = '0001'",
    "UPDATE edit_requests SET target_new = 'another'",
    "UPDATE edit_requests SET submitted_by = 'somebody else'",
    "UPDATE snapshots SET digest = 'another'",
    "UPDATE snapshots SET delta = '{}'",
    "UPDATE gate_reports SET verdict = 'passed'",
    "UPDATE approvals SET actor = 'somebody else'",
    "UPDATE lineages SET base_digest = 'another'",
    "UPDATE dead_letters SET value = NULL",
    "DELETE FROM people",
    "DELETE FROM outbox",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'corrigenda'",
]
"""What nobody but the owner may do."""

ONE_OF_THEM = {
    Login.intake: [
        "UPDATE snapshots SET status = 'approved'",
        "UPDATE edit_requests SET status = 'reverted'",
        "UPDATE lineages SET champion_snapshot_id = NULL",
        "UPDATE lineages SET policy = '{}'",
        "UPDATE lineages SET hold = NULL",
        "UPDATE leases SET owner = 'me'",
        "UPDATE outbox SET done_at = now()",
        "UPDATE dead_letters SET replayed_at = now()",
        "INSERT INTO approvals DEFAULT VALUES",
        "INSERT INTO snapshots DEFAULT VALUES",
        "INSERT INTO lineages DEFAULT VALUES",
        "INSERT INTO removals DEFAULT VALUES",
        "SELECT * FROM snapshots",
        "SELECT * FROM approvals",
        "SELECT payload FROM outbox",
        "SELECT prune_before(now() - interval '2 hours')",
    ],
    Login.editor: [
        "UPDATE snapshots SET status = 'approved'",
        "UPDATE snapshots SET registry_version = '1'",
        "UPDATE lineages SET policy = '{}'",
        "UPDATE lineages SET champion_snapshot_id = head_snapshot_id",
        "UPDATE ingest_offsets SET next_offset = next_offset + 1",
        "UPDATE outbox SET done_at = now()",
        "INSERT INTO approvals DEFAULT VALUES",
        "INSERT INTO edit_requests DEFAULT VALUES",
        "INSERT INTO dead_letters DEFAULT VALUES",
        "INSERT INTO lineages DEFAULT VALUES",
        # It may owe that the ledger is solved anew, and nothing that takes edits out.
        "INSERT INTO removals (edit_ids) VALUES ('[]')",
        "UPDATE removals SET edit_ids = '[]'",
        "SELECT * FROM dead_letters",
        "SELECT prune_before(now() - interval '2 hours')",
    ],
    Login.control: [
        "UPDATE snapshots SET status = 'approved'",
        "UPDATE lineages SET policy = '{}'",
        "UPDATE lineages SET head_snapshot_id = NULL",
        "UPDATE leases SET owner = 'me'",
        "UPDATE edit_rows SET until_seq = 1",
        "UPDATE edit_requests SET status = 'dead'",
        "UPDATE ingest_offsets SET next_offset = next_offset + 1",
        "INSERT INTO edit_requests DEFAULT VALUES",
        "INSERT INTO snapshots DEFAULT VALUES",
        "INSERT INTO lineages DEFAULT VALUES",
        "SELECT prune_before(now() - interval '2 hours')",
    ],
    Login.console: [
        "SELECT * FROM people",
        "SELECT secret FROM webhooks",
        "UPDATE snapshots SET status = 'approved'",
        "UPDATE snapshots SET registry_version = '1'",
        "UPDATE lineages SET head_snapshot_id = NULL",
        "UPDATE leases SET owner = 'me'",
        "UPDATE edit_rows SET until_seq = 1",
        "UPDATE ingest_offsets SET next_offset = next_offset + 1",
        "INSERT INTO edit_requests DEFAULT VALUES",
        "INSERT INTO snapshots DEFAULT VALUES",
        "INSERT INTO gate_reports DEFAULT VALUES",
    ],
    Login.web: [
        "UPDATE snapshots SET status = 'approved'",
        "UPDATE snapshots SET registry_version = '1'",
        "UPDATE lineages SET head_snapshot_id = NULL",
        "UPDATE leases SET owner = 'me'",
        "UPDATE edit_rows SET until_seq = 1",
        "UPDATE ingest_offsets SET next_offset = next_offset + 1",
        "UPDATE outbox SET done_at = now()",
        "UPDATE people SET roles = ARRAY['operator']",
        "INSERT INTO people (name, roles) VALUES ('mine', ARRAY['operator'])",
        "SELECT secret FROM webhooks",
        "UPDATE webhooks SET url = 'https://elsewhere'",
        "UPDATE submissions SET submitted_by = 'somebody else'",
        "INSERT INTO edit_requests DEFAULT VALUES",
        "INSERT INTO snapshots DEFAULT VALUES",
        "INSERT INTO gate_reports DEFAULT VALUES",
        "INSERT INTO lineages DEFAULT VALUES",
        "SELECT prune_before(now() - interval '2 hours')",
    ],
    Login.serving: [
        "UPDATE snapshots SET status = 'approved'",
        "UPDATE lineages SET champion_snapshot_id = NULL",
        "INSERT INTO audit_events DEFAULT VALUES",
        "INSERT INTO outbox DEFAULT VALUES",
        "SELECT * FROM snapshots",
        "SELECT policy FROM lineages",
        "SELECT * FROM edit_requests",
        "SELECT * FROM people",
        "SELECT prune_before(now() - interval '2 hours')",
    ],
    Login.auditor: [
        "SELECT * FROM edit_requests",
        "SELECT * FROM outbox",
        "SELECT * FROM dead_letters",
        "INSERT INTO audit_events DEFAULT VALUES",
        "UPDATE chain_heads SET seq = seq + 1",
        "UPDATE snapshots SET status = 'retired'",
        "UPDATE outbox SET done_at = now()",
        "UPDATE lineages SET policy = '{}'",
        "UPDATE lineages SET hold = NULL",
        "SELECT prune_before(now() - interval '2 hours')",
    ],
}
"""What this login may not do, though another may."""


def url_of(owner_url: str, login: str, secret: str = SECRET) -> str:
    """The same database for a login with a password of this file."""
    password = derived_password(secret, login)
    return parsed_url(owner_url).set(username=login, password=password).render_as_string(hide_password=False)


def psycopg_url(url: str) -> str:
    return url.replace("postgresql+psycopg", "postgresql")


def in_database(url: str, name: str) -> str:
    return parsed_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def url(empty_postgres_url: str) -> str:
    """URL of the owner of a database that was migrated here: copies of a template have no grants of their own."""
    schema.upgrade(empty_postgres_url)
    let_in(empty_postgres_url, [url_of(empty_postgres_url, login) for login in Login])
    return empty_postgres_url


@pytest.fixture
def filled(url: str, tmp_path: Path) -> Iterator[str]:
    """The database with a lineage, a snapshot of an edit, and a history."""
    rig = StoreRig(url=url, folder=tmp_path)
    rig.new_lineage()
    rig.correct("r1")
    rig.commit_batch(rig.acquire())
    yield url
    rig.close()


def attempt(url: str, statement: str) -> None:
    with psycopg.connect(psycopg_url(url), autocommit=True) as connection:
        connection.execute(statement.encode())


def test_each_login_may_do_nothing_that_is_the_owners_or_anothers(filled: str) -> None:
    done = []
    for login in Login:
        for statement in [*EVERYBODY, *ONE_OF_THEM[login]]:
            try:
                attempt(url_of(filled, login), statement)
            except errors.InsufficientPrivilege:
                continue
            except psycopg.Error as other:
                done.append((login.value, statement, str(other)))
            else:
                done.append((login.value, statement, "done"))
    assert done == []


def test_a_process_that_is_given_a_superuser_says_so_and_does_nothing(
    filled: str, pools_close: None, kafka_bootstrap: str, new_topic: Callable[..., str]
) -> None:
    kept = stores(Settings(database_url=SecretStr(filled)))
    with pytest.raises(Misconfigured, match=r"a database login of this process's own.*got the superuser 'corrigenda'"):
        kept.lineages.lineages()
    settings = intake_settings(filled, kafka_bootstrap, new_topic(), database_role="")
    with pytest.raises(Misconfigured, match="for migrations"):
        consumer.run(settings, lambda: False)
    own = stores(Settings(database_url=SecretStr(url_of(filled, Login.console))))
    assert [lineage.settings.name for lineage in own.lineages.lineages()] == ["facts"]


def test_a_database_of_the_version_before_is_brought_up_with_its_history_and_lets_logins_in(
    empty_postgres_url: str, local_stack: LocalStack
) -> None:
    schema.upgrade(empty_postgres_url, "0007")
    engine = connect(empty_postgres_url, "corrigenda_app")
    with transaction(engine) as connection:
        line = AuditLine(chain="system", actor="cli:ada", action=AuditAction.message_refused, subject="x", payload={})
        append_all(connection, [line])
    engine.dispose()
    for number in range(2):
        schema.upgrade(empty_postgres_url)
        let_in(empty_postgres_url, [url_of(empty_postgres_url, login, f"{SECRET}-{number}") for login in Login])
    as_auditor = connect(url_of(empty_postgres_url, Login.auditor, f"{SECRET}-1"), "")
    assert SqlAuditStore(as_auditor).verify("system") is None
    assert SqlAuditStore(as_auditor).head("system")[0] == 1
    as_auditor.dispose()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        attempt(url_of(empty_postgres_url, Login.auditor, f"{SECRET}-0"), "SELECT 1")
    said = (local_stack.root / "logs" / "postgres.log").read_text()
    assert not any(derived_password(f"{SECRET}-1", login) in said for login in Login)


def test_only_known_logins_with_a_password_are_let_in(url: str) -> None:
    for user, password in (("corrigenda", "x"), ("postgres", "x"), ("corrigenda_app", "x"), (Login.intake, "")):
        given = parsed_url(url).set(username=user, password=password).render_as_string(hide_password=False)
        with pytest.raises(Misconfigured, match="expected"):
            let_in(url, [given])


def test_another_program_gets_a_database_that_is_closed_to_our_logins_and_ours_is_closed_to_it(url: str) -> None:
    name = f"mlflow_{uuid4().hex[:12]}"
    theirs = parsed_url(url).set(username=name, password="of-mlflow", database=name)
    given = theirs.render_as_string(hide_password=False)
    attempt(url, f"CREATE DATABASE {name}")
    try:
        # As the version before left it: tables that belong to the owner of ours.
        attempt(in_database(url, name), "CREATE TABLE runs (run_id serial PRIMARY KEY)")
        for _ in range(2):
            give_database(url, given)
        attempt(
            given, "INSERT INTO runs DEFAULT VALUES; ALTER TABLE runs ADD COLUMN more int; CREATE TABLE new (a int)"
        )
        for own in Login:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                attempt(in_database(url_of(url, own), name), "SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            attempt(theirs.set(database=parsed_url(url).database).render_as_string(hide_password=False), "SELECT 1")
        with pytest.raises(Misconfigured, match="own login and database"):
            give_database(url, url_of(url, Login.intake))
    finally:
        attempt(url, f"DROP DATABASE {name} WITH (FORCE)")
        attempt(url, f"DROP ROLE {name}")


def test_the_migration_job_lets_in_whoever_has_a_url_in_its_folder(url: str, tmp_path: Path) -> None:
    (tmp_path / "intake_database_url").write_text(url_of(url, Login.intake, "another") + "\n")
    migrate.let_in_from(tmp_path, url)
    attempt(url_of(url, Login.intake, "another"), "SELECT * FROM ingest_offsets")
    attempt(url_of(url, Login.editor), "SELECT * FROM leases")


def test_no_process_of_the_embedded_stack_is_told_the_owners_password_or_anothers(
    tmp_path: Path, local_stack: LocalStack
) -> None:
    told: dict[str, str] = {}

    class Told(LocalStack):
        def endpoints(self) -> Endpoints:
            return endpoints

        def spawn(
            self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, **_: Any
        ) -> ProcessStatus:
            told[name] = "\n".join([*argv, *(env or {}).values()])
            return ProcessStatus(
                name=name, state=ProcessState.RUNNING, pid=0, port=None, log=tmp_path, restarts=0, restarted_at=None
            )

    endpoints = local_stack.start([Service.POSTGRES])
    stack = Told(tmp_path)
    settings = with_endpoints(Settings(home=tmp_path), endpoints)
    processes.start_intake(stack, settings)
    processes.start_control_worker(stack, settings)
    processes.start_edit_worker(stack, settings, BaseSpec(ref="base", digest="b" * 64, task="causal"))
    owner = urlsplit(endpoints.database_url).password
    passwords = {login: urlsplit(endpoints.login_url(login)).password for login in Login}
    assert {name: [login for login in Login if str(passwords[login]) in text] for name, text in told.items()} == {
        "intake": [Login.intake],
        "control-worker": [Login.control],
        f"edit-worker-{'b' * 12}": [Login.editor],
    }
    assert owner not in "\n".join(told.values())
    assert owner not in str(settings.model_dump())


def test_redis_gets_a_password_of_its_own_and_one_of_the_version_before_is_reached_until_it_ends(
    tmp_path: Path,
) -> None:
    stack = LocalStack(tmp_path / "stack", is_durable=False)
    try:
        own = stack.start([Service.REDIS])
        assert urlsplit(own.redis_url).password not in ("", None, urlsplit(own.database_url).password)
        state = json.loads((stack.root / "state.json").read_text())
        del state["redis_password"]
        (stack.root / "state.json").write_text(json.dumps(state))
        assert urlsplit(stack.endpoints().redis_url).password == urlsplit(own.database_url).password
        stack.stop()
        assert stack.start([Service.REDIS]) == own
    finally:
        stack.stop()
