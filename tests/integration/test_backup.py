"""A database that was restored as OPERATING.md says, or is of the last release, has every row, verifies and goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from infra.local.owner_login import PROGRAMS, variables
from infra.local.recipe import program
from pipeline.adapters import schema
from pipeline.domain.review.approvals import Decision
from tests.support.store_rig import LINEAGE, StoreRig

LAST_RELEASE = "0013"
"""The newest revision of the release before this one."""


WHO_ENTERS = b"SELECT datacl::text[] FROM pg_database WHERE datname = current_database()"
"""Who may connect to the database that is asked."""


def run(url: str, name: str, *words: str) -> str:
    """Run a program of PostgreSQL's as OPERATING.md says: no password stands on its command line."""
    environment = {**os.environ, **variables(url)}
    finished = subprocess.run(
        [str(program(*PROGRAMS, name)), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_restored_database_has_every_row_and_guard_verifies_and_takes_the_next_edits(
    postgres_url: str, postgres_server: str, tmp_path: Path
) -> None:
    before = StoreRig(url=postgres_url, folder=tmp_path)
    before.new_lineage()
    before.correct("r1", fact="X")
    first = before.commit_batch(before.acquire())
    assert before.decide(first, Decision.approved).is_accepted
    before.correct("r2", fact="X", target="Sydney", minute=5)
    kept, head, partition = before.contents(), before.audit.head(LINEAGE), before.partition
    owed, may_enter = before.debts("result"), before.owner.execute(WHO_ENTERS).fetchone()
    before.close()

    dump, name = tmp_path / "corrigenda.dump", urlsplit(postgres_url).path[1:]
    run(postgres_url, "pg_dump", "--format=custom", f"--file={dump}")
    with psycopg.connect(postgres_server, autocommit=True) as server:
        server.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
        server.execute(f'CREATE DATABASE "{name}" TEMPLATE template0'.encode())
    run(postgres_url, "pg_restore", "--exit-on-error", "--single-transaction", f"--dbname={name}", str(dump))
    script = run(postgres_url, "pg_restore", "--create", "--schema-only", "--file=-", str(dump))
    with psycopg.connect(postgres_server, autocommit=True) as server:
        for line in filter(lambda line: " ON DATABASE " in line, script.splitlines()):
            server.execute(line.encode())

    after = StoreRig(url=postgres_url, folder=tmp_path, offset=before.offset, partition=partition)
    assert after.contents() == kept
    assert (after.audit.head(LINEAGE), after.audit.verify(LINEAGE), after.debts("result")) == (head, None, owed)
    assert after.snapshots.snapshot(LINEAGE, first.snapshot_id).digest == first.digest
    assert after.owner.execute(WHO_ENTERS).fetchone() == may_enter
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        after.owner.execute(b"DELETE FROM audit_events")
    after.expire_lease()
    after.make_due()
    second = after.commit_batch(after.acquire("worker:b"))
    after.correct("r3")
    assert (second.seq, after.audit.verify(LINEAGE), after.status(after.edit_id("r3"))) == (2, None, "received")
    after.close()


def test_a_history_of_the_last_release_is_brought_up_with_every_value_and_goes_on(
    empty_postgres_url: str, tmp_path: Path
) -> None:
    schema.upgrade(empty_postgres_url)
    rig = StoreRig(url=empty_postgres_url, folder=tmp_path)
    rig.new_lineage()
    rig.correct("r1", fact="X")
    assert rig.decide(rig.commit_batch(rig.acquire()), Decision.approved).is_accepted
    rig.correct("r2", fact="X", target="Sydney", minute=5)
    rig.expire_lease()
    schema.downgrade(empty_postgres_url, LAST_RELEASE)
    released = rig.contents()
    schema.upgrade(empty_postgres_url)
    now = rig.contents()
    for table in released.keys() - {"alembic_version"}:
        columns = list(released[table][0]) if released[table] else []
        by_text = [sorted(str([row[name] for name in columns]) for row in rows[table]) for rows in (released, now)]
        assert by_text[0] == by_text[1], table
    assert rig.audit.verify(LINEAGE) is None
    rig.make_due()
    assert rig.commit_batch(rig.acquire("worker:b")).seq == 2
    assert rig.audit.verify(LINEAGE) is None
    rig.close()
