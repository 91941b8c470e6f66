"""What was restored as OPERATING.md says, or is of the last release, has all that it had, verifies and goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from infra.local import LocalStack
from infra.local.owner_login import PROGRAMS, variables
from infra.local.recipe import program
from infra.local.records import Endpoints, Service
from pipeline.adapters import schema
from pipeline.adapters.logins import Login, let_in
from pipeline.adapters.mlflow.errors import log_in
from pipeline.adapters.mlflow.registry import MlflowRegistry
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.review.approvals import Decision
from pipeline.services.registry.champion_alias import ChampionAlias
from pipeline.services.registry.mirroring import RegistryMirror
from tests.support.paths import ROOT
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


COMMANDS = """
python() { "$PYTHON" "$@"; }
corrigenda() { "$PYTHON" -m pipeline.entrypoints.cli "$@"; }
up() { "$PYTHON" -c 'from tests.integration.test_backup import up; up()'; }
"""
"""The names that the blocks of OPERATING.md use, and `up` in place of `corrigenda up`."""


def up(home: Path = Path(".corrigenda")) -> LocalStack:
    """Do what `corrigenda up` does for the three stores; no process of ours is started, which would go on."""
    stack = LocalStack(home, is_durable=False)
    endpoints = stack.start([Service.POSTGRES, Service.MLFLOW])
    schema.upgrade(endpoints.database_url)
    let_in(endpoints.database_url, [endpoints.login_url(login) for login in Login])
    return stack


def documented(wanted: str) -> str:
    """Return the block of OPERATING.md that has these words."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "OPERATING.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    [found] = [block for block in blocks if wanted in block]
    return str(found).replace("corrigenda up", "up")


def run_block(block: str, folder: Path) -> str:
    """Run a block of commands in a folder, as somebody would paste it; return what it prints."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-euo", "pipefail", "-c", COMMANDS + block]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def everything(rig: StoreRig, home: Path, endpoints: Endpoints) -> dict[str, Any]:
    """Return what the three stores hold: rows, chains, digests of files, and all that MLflow says of the versions."""
    from mlflow import MlflowClient

    log_in(endpoints.mlflow_username, endpoints.mlflow_password)
    client: Any = MlflowClient(tracking_uri=endpoints.mlflow_uri, registry_uri=endpoints.mlflow_uri)
    model, versions = client.get_registered_model(LINEAGE), client.search_model_versions(f"name = '{LINEAGE}'")
    folders = {name: home / name for name in ("artifacts", "mlflow/artifacts")}
    return {
        "rows": rig.contents(),
        "chains": {name: (rig.audit.head(name), rig.audit.verify(name)) for name in rig.audit.chains()},
        "files": {
            f"{name}/{path.relative_to(folder)}": sha256_file(path)
            for name, folder in folders.items()
            for path in folder.rglob("*")
            if path.is_file()
        },
        "model": (dict(model.aliases), dict(model.tags), model.description),
        "versions": {one.version: (dict(one.tags), one.source, one.description) for one in versions},
        "runs": {one.version: client.get_run(one.run_id).to_dictionary() for one in versions},
    }


def test_a_stack_that_was_wiped_is_restored_with_its_database_artifacts_and_model_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("CORRIGENDA_")]:
        monkeypatch.delenv(name)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # MLflow's client of this test logs in to other servers than that of the session
    home = tmp_path / ".corrigenda"
    monkeypatch.setenv("CORRIGENDA_HOME", str(home))
    try:
        stack = up(home)
        endpoints = stack.endpoints()
        rig = StoreRig(url=endpoints.database_url, folder=home)
        registry = MlflowRegistry(
            endpoints.mlflow_uri, username=endpoints.mlflow_username, password=endpoints.mlflow_password
        )
        rig.new_lineage()
        for request_id, decision in (("r1", Decision.approved), ("r2", None)):
            rig.correct(request_id)
            snapshot = rig.commit_batch(rig.acquire())
            RegistryMirror(mirror=rig.mirror, registry=registry).register(snapshot.snapshot_id)
            if decision:
                assert rig.decide(snapshot, decision).is_accepted
        ChampionAlias(mirror=rig.mirror, registry=registry).point(LINEAGE)
        before = everything(rig, home, endpoints)
        assert (before["model"][0], set(before["versions"])) == ({"champion": "1"}, {"1", "2"})
        rig.close()

        run_block(documented("cp -a .corrigenda/mlflow/artifacts backup/mlflow/"), tmp_path)
        stack.stop()
        shutil.rmtree(home)
        said = run_block(documented("cp -a backup/mlflow backup/artifacts .corrigenda/"), tmp_path)
        for version in ("1", "2"):
            assert f"{LINEAGE}: model version {version} of snapshot {version}, every file is what" in said
        assert re.search(
            rf"^{LINEAGE}: \d+ lines, every one follows the one before; 2 anchors agree", said, re.MULTILINE
        )
        endpoints = stack.endpoints()
        rig = StoreRig(url=endpoints.database_url, folder=home)
        assert everything(rig, home, endpoints) == before
        rig.close()
    finally:
        LocalStack(home).stop()


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
