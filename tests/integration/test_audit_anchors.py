"""A chain that was rewritten and rehashed verifies by itself; anchors in MLflow name the first line they contradict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner, Result

from pipeline.adapters.anchor_bucket import AnchorBucket
from pipeline.adapters.anchor_file import AnchorFile
from pipeline.adapters.logins import Login
from pipeline.adapters.mlflow import anchors as mlflow_anchors
from pipeline.adapters.mlflow.anchors import MlflowAnchors
from pipeline.adapters.sql.audit import AuditLine, SqlAuditStore, append_all
from pipeline.adapters.sql.database.engine import transaction
from pipeline.bootstrap import stores
from pipeline.domain.audit import (
    GENESIS_HASH,
    SYSTEM_CHAIN,
    Anchor,
    AnchoredVersion,
    AnchorNote,
    AuditAction,
    AuditEvent,
    event_hash,
)
from pipeline.domain.errors import Unavailable
from pipeline.entrypoints.cli import bundles, verifying
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode
from pipeline.services.registry import anchoring
from pipeline.services.registry.anchoring import AnchorChecker, AnchorKeeper
from tests.support.store_rig import LINEAGE, StoreRig

NUM_VERSIONS = 3
AUDIT, SYSTEM = "corrigenda.audit_head", "corrigenda.system_audit_head"


class OneModel:
    """The anchors of the lineage `facts` under the name that this test has in the shared MLflow."""

    def __init__(self, uri: str, name: str) -> None:
        self._anchors = MlflowAnchors(uri)
        self._name = name

    def versions(self, lineage: str) -> Iterator[AnchoredVersion]:
        assert lineage == LINEAGE
        return self._anchors.versions(self._name)


class NoPackages:
    """Finds no files to check."""

    def check(self, lineage: str, *, every: bool) -> tuple[()]:
        return ()


class Anchored:
    """A lineage with three registered snapshots, and a checker of its anchors."""

    def __init__(self, rig: StoreRig, uri: str, name: str) -> None:
        from mlflow import MlflowClient

        self.rig, self.name = rig, name
        self.client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.source = OneModel(uri, name)
        self.anchors: list[int] = []
        self.created: list[int] = []
        self.client.create_registered_model(name)
        rig.new_lineage()
        for number in range(1, NUM_VERSIONS + 1):
            rig.correct(f"r{number}")
            self._add_system_line(number)
            made = rig.commit_batch(rig.acquire())
            self._register(made.snapshot_id, number)
        rig.correct("after the last anchor")

    def _register(self, snapshot_id: str, number: int) -> None:
        entry_head, system_head = self.rig.audit.head(LINEAGE), self.rig.audit.head(SYSTEM_CHAIN)
        tags = {AUDIT: "{}:{}".format(*entry_head), SYSTEM: "{}:{}".format(*system_head)}
        run = self.client.create_run("0").info
        source = f"{run.artifact_uri}/m"
        made = self.client.create_model_version(
            self.name, source, run_id=run.run_id, tags=tags, await_creation_for=None
        )
        assert int(made.version) == number
        self.rig.mirror.registered(snapshot_id, version=str(number))
        self.anchors.append(entry_head[0])
        events = self.rig.audit.events(LINEAGE)
        self.created += [e.seq for e in events if (e.action, e.subject) == (AuditAction.snapshot_created, snapshot_id)]

    def _add_system_line(self, number: int) -> None:
        line = AuditLine(
            chain=SYSTEM_CHAIN, actor="intake", action=AuditAction.message_refused, subject=f"{number}", payload={}
        )
        with transaction(self.rig.engines[Login.intake]) as connection:
            append_all(connection, [line])

    def checked(self, chain: str = LINEAGE) -> tuple[int, int, int | None, str]:
        """Anchors that agree, the newest of them, the first line that is contradicted, and why."""
        assert self.rig.audit.verify(chain) is None, "by itself the chain is whole"
        found = AnchorChecker(chains=self.rig.audit, anchors=self.source).check(chain)
        first = found.contradiction
        return found.num_agreeing, found.newest_seq, first.seq if first else None, first.reason if first else ""

    def rewrite(self, change: Callable[[list[AuditEvent]], Sequence[AuditEvent]], chain: str = LINEAGE) -> None:
        """Change the chain as the database's superuser: every line numbered and hashed anew, and the head with them."""
        forged: list[AuditEvent] = []
        for seq, event in enumerate(change(list(self.rig.audit.events(chain))), start=1):
            body = asdict(event) | {"seq": seq, "prev_hash": forged[-1].hash if forged else GENESIS_HASH}
            del body["hash"]
            forged.append(AuditEvent(**body, hash=event_hash(**body)))
        with psycopg.connect(self.rig.url) as owner:
            for table in ("audit_events", "chain_heads"):
                owner.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
            owner.execute("DELETE FROM audit_events WHERE chain = %s", [chain])
            for event in forged:
                values = list(asdict(event).values())
                owner.execute("INSERT INTO audit_events VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)", values)
            last = forged[-1]
            owner.execute("UPDATE chain_heads SET seq = %s, hash = %s WHERE chain = %s", [last.seq, last.hash, chain])


@pytest.fixture
def anchored(
    postgres_url: str, tmp_path: Path, mlflow_uri: str, lineage_name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Anchored]:
    """Read two versions and two anchors at a time."""
    monkeypatch.setattr(mlflow_anchors, "PAGE", 2)
    monkeypatch.setattr(anchoring, "PAGE", 3)
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    yield Anchored(rig, mlflow_uri, lineage_name)
    rig.close()


def test_a_chain_that_nobody_touched_agrees_with_every_anchor(anchored: Anchored) -> None:
    assert anchored.checked() == (NUM_VERSIONS, anchored.anchors[-1], None, "")
    assert anchored.checked(SYSTEM_CHAIN) == (NUM_VERSIONS, NUM_VERSIONS, None, "")


def without(place: int) -> Callable[[list[AuditEvent]], Sequence[AuditEvent]]:
    return lambda events: events[: place - 1] + events[place:]


def with_another(place: int, **changes: Any) -> Callable[[list[AuditEvent]], Sequence[AuditEvent]]:
    return lambda events: [replace(e, **changes) if e.seq == place else e for e in events]


@pytest.mark.parametrize(
    ("kind", "anchor"), [("deleted", 0), ("deleted", 2), ("actor", 1), ("payload", 2), ("inserted", 0), ("swapped", 1)]
)
def test_the_first_anchor_at_or_after_what_was_rewritten_names_its_line(
    anchored: Anchored, kind: str, anchor: int
) -> None:
    at = anchored.anchors[anchor]
    place = at if kind != "swapped" else at - 1
    changes: dict[str, Callable[[list[AuditEvent]], Sequence[AuditEvent]]] = {
        "deleted": without(place),
        "actor": with_another(place, actor="cli:ceo"),
        "payload": with_another(place, payload="{}"),
        "inserted": lambda events: [*events[: place - 1], events[0], *events[place - 1 :]],
        "swapped": lambda e: [*e[: place - 1], e[place], e[place - 1], *e[place + 1 :]],
    }
    anchored.rewrite(changes[kind])
    agreeing, newest, seq, reason = anchored.checked()
    assert (agreeing, newest, seq) == (anchor, anchored.anchors[anchor - 1] if anchor else 0, at)
    assert reason.startswith(f"model version {anchor + 1} was registered when this line had the hash ")


def test_a_tail_that_was_cut_off_with_its_head_is_named_by_the_anchors_of_what_is_gone(anchored: Anchored) -> None:
    kept = anchored.anchors[0]
    anchored.rewrite(lambda events: events[:kept])
    agreeing, newest, seq, reason = anchored.checked()
    assert (agreeing, newest) == (1, kept)
    assert kept < (seq or 0) <= anchored.anchors[1]
    assert "missing" in reason or "no line says" in reason


def test_what_was_rewritten_after_the_newest_anchor_is_not_vouched_for(anchored: Anchored) -> None:
    anchored.rewrite(with_another(anchored.rig.audit.head(LINEAGE)[0], actor="cli:ceo"))
    assert anchored.checked()[1:3] == (anchored.anchors[-1], None)


def test_the_system_chain_is_anchored_by_the_versions_of_every_lineage(anchored: Anchored) -> None:
    anchored.rewrite(with_another(2, actor="cli:ceo"), SYSTEM_CHAIN)
    agreeing, _, seq, reason = anchored.checked(SYSTEM_CHAIN)
    assert (agreeing, seq) == (1, 2)
    assert reason.startswith(f"model version 2 of {LINEAGE} was registered when")


@pytest.mark.parametrize("value", [None, "", "nonsense", "7:abc", "\u0663:" + "a" * 64])
def test_an_anchor_that_is_gone_or_is_none_names_the_line_of_its_snapshot(
    anchored: Anchored, value: str | None
) -> None:
    if value is None:
        anchored.client.delete_model_version_tag(anchored.name, "2", AUDIT)
    else:
        anchored.client.set_model_version_tag(anchored.name, "2", AUDIT, value)
    agreeing, newest, seq, reason = anchored.checked()
    assert (agreeing, newest, seq) == (NUM_VERSIONS - 1, anchored.anchors[-1], anchored.created[1])
    assert reason == "its snapshot became model version 2, which carries no anchor"


def test_an_anchor_that_was_replaced_by_an_older_one_is_told(anchored: Anchored) -> None:
    older = anchored.client.get_model_version(anchored.name, "1").tags[AUDIT]
    anchored.client.set_model_version_tag(anchored.name, "3", AUDIT, older)
    assert anchored.checked()[2:] == (
        anchored.created[2],
        f"model version 3 has an anchor of line {anchored.anchors[0]}, before its snapshot was made",
    )


@pytest.mark.parametrize("version", [1, NUM_VERSIONS])
def test_a_version_that_was_deleted_in_mlflow_is_told(anchored: Anchored, version: int) -> None:
    anchored.client.delete_model_version(anchored.name, str(version))
    assert anchored.checked()[2:] == (
        anchored.created[version - 1],
        f"its snapshot became model version {version}, which the registry does not have",
    )


def test_a_model_that_was_deleted_in_mlflow_is_told(anchored: Anchored) -> None:
    anchored.client.delete_registered_model(anchored.name)
    assert anchored.checked()[:3] == (0, 0, anchored.created[0])


@pytest.fixture
def verify(
    anchored: Anchored, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, pools_close: None
) -> Callable[..., Result]:
    """Runs `corrigenda audit verify` on that database, with the MLflow that is given."""
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", anchored.rig.url)
    monkeypatch.setenv("CORRIGENDA_DATABASE_ROLE", Login.auditor)
    monkeypatch.setattr(
        verifying,
        "anchor_checker",
        lambda settings: AnchorChecker(chains=stores(settings).audit, anchors=anchored.source),
    )
    # Its files are what test_packages and their kind look at.
    monkeypatch.setattr(verifying, "package_checker", lambda settings: NoPackages())
    return lambda *words: CliRunner().invoke(app, ["audit", "verify", *words])


def test_the_command_names_the_line_and_exits_with_1_also_for_a_rewritten_chain(
    verify: Callable[..., Result], anchored: Anchored
) -> None:
    fine = verify()
    assert fine.exit_code == ExitCode.done, fine.output
    assert f"{NUM_VERSIONS} anchors agree, the newest of line {anchored.anchors[-1]}" in fine.stdout
    anchored.rewrite(with_another(3, actor="cli:ceo"))
    found = verify("facts", "--json")
    assert found.exit_code == ExitCode.failed
    [told] = json.loads(found.stdout)
    assert (told["break"]["seq"], told["anchors"]["num_agreeing"]) == (anchored.anchors[0], 0)
    assert f"facts: broken at line {anchored.anchors[0]}: model version 1" in verify().stderr


def test_an_mlflow_that_does_not_answer_is_told_with_what_was_not_checked_and_another_exit_status(
    verify: Callable[..., Result], anchored: Anchored, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(lineage: str) -> Iterator[AnchoredVersion]:
        raise Unavailable("cannot read the audit anchors of facts: connection refused")

    monkeypatch.setattr(anchored.source, "versions", away)
    found = verify("facts")
    assert found.exit_code == ExitCode.unavailable
    assert "every one follows the one before; anchors and files in MLflow were not checked: cannot read" in found.stderr
    assert "connection refused" in json.loads(verify("facts", "--json").stdout)[0]["not_checked"]
    every = verify()
    assert (every.exit_code, every.stderr.count("connection refused")) == (ExitCode.unavailable, 1)
    assert every.stderr.count("anchors and files in MLflow were not checked") == 2, "of `facts` and of `system`"
    alone = verify("facts", "--no-mlflow")
    assert (alone.exit_code, "MLflow was not asked" in alone.stdout) == (ExitCode.done, True)
    with psycopg.connect(anchored.rig.url) as owner:
        owner.execute("ALTER TABLE audit_events DISABLE TRIGGER ALL")
        owner.execute("UPDATE audit_events SET actor = 'x' WHERE chain = 'facts' AND seq = 2")
    broken = verify()
    assert (broken.exit_code, "facts: broken at line 2" in broken.stderr) == (ExitCode.failed, True)


def test_a_bundle_is_checked_with_its_public_key_alone_and_names_the_line_that_an_anchor_contradicts(
    verify: Callable[..., Result], anchored: Anchored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "anchor_source", lambda settings: anchored.source)
    monkeypatch.setenv("CORRIGENDA_HOME", str(tmp_path / "home"))
    file = tmp_path / "june.jsonl"
    made = CliRunner().invoke(app, ["audit", "bundle", str(file)])
    assert made.exit_code == ExitCode.done, made.output
    key = made.stdout.split()[-1]
    assert (tmp_path / "home" / "audit-signing.key").stat().st_mode & 0o777 == 0o600
    check = ["audit", "verify-bundle", str(file), "--public-key", key]
    with monkeypatch.context() as offline:
        offline.setenv("CORRIGENDA_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
        fine = CliRunner().invoke(app, check)
    assert fine.exit_code == ExitCode.done, fine.output
    assert f"facts: {anchored.rig.audit.head(LINEAGE)[0]} lines, every one follows the one before; 3" in fine.stdout
    anchored.rewrite(with_another(3, actor="cli:ceo"))
    again = CliRunner().invoke(app, ["audit", "bundle", str(file)])
    found = CliRunner().invoke(app, check)
    assert (again.exit_code, again.stdout.split()[-1], found.exit_code) == (ExitCode.failed, key, ExitCode.failed)
    for said in (again, found):
        assert f"facts: broken at line {anchored.anchors[0]}: model version 1 of facts says" in said.stderr


def test_anchors_in_a_file_name_the_line_that_was_rewritten_also_where_mlflow_is_not_asked(
    verify: Callable[..., Result], anchored: Anchored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "anchors.jsonl"
    monkeypatch.setenv("CORRIGENDA_ANCHOR_FILE", str(path))
    missing = verify("--no-mlflow")
    assert (missing.exit_code, "cannot read the anchor file" in missing.stderr) == (ExitCode.misconfigured, True)
    keeper = AnchorKeeper(chains=SqlAuditStore(anchored.rig.engines[Login.control]), file=AnchorFile(path))
    keeper.run_once()
    keeper.run_once()
    anchored.rig.correct("later")
    keeper.run_once()
    at = anchored.rig.audit.head(LINEAGE)[0]
    assert [note.anchor.seq for note in AnchorFile(path).notes() if note.chain == LINEAGE] == [at - 1, at]
    fine = verify("facts", "--no-mlflow")
    assert (fine.exit_code, f"2 anchors of the file agree, the newest of line {at}" in fine.stdout) == (0, True)
    anchored.rewrite(with_another(at, actor="cli:ceo"))
    found = verify("facts", "--no-mlflow")
    assert found.exit_code == ExitCode.failed
    assert f"facts: broken at line {at}: the anchor file says that at 2" in found.stderr
    with path.open("a") as file:
        file.write('{"at": "now", "chain": "facts", "anchor": "nonsense"}\n')
    assert "expected an anchor in line 4 of" in verify("facts").stderr


def test_without_an_mlflow_in_the_settings_that_is_what_is_said(
    verify: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.bootstrap import anchor_checker

    monkeypatch.setattr(verifying, "anchor_checker", anchor_checker)
    monkeypatch.delenv("CORRIGENDA_MLFLOW_URI", raising=False)
    found = verify("facts")
    assert found.exit_code == ExitCode.misconfigured
    assert "anchors and files in MLflow were not checked: expected CORRIGENDA_MLFLOW_URI to be set" in found.stderr


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnchorBucket]:
    """A bucket that the settings name."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("CORRIGENDA_ANCHOR_BUCKET", "s3://kept/by others")
    monkeypatch.setenv("CORRIGENDA_ANCHOR_ENDPOINT", f"http://127.0.0.1:{port}")
    made = AnchorBucket("s3://kept/by others", endpoint=f"http://127.0.0.1:{port}")
    yield made
    server.stop()


def test_a_bucket_of_anchors_says_when_the_store_took_them_and_what_was_rewritten(
    anchored: Anchored, verify: Callable[..., Result], bucket: AnchorBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = verify("facts", "--no-mlflow")
    assert (missing.exit_code, "NoSuchBucket" in missing.stderr) == (ExitCode.misconfigured, True)
    bucket.make_bucket()
    began = datetime.now(UTC) - timedelta(seconds=2)
    keeper = AnchorKeeper(chains=SqlAuditStore(anchored.rig.engines[Login.control]), file=bucket)
    keeper.run_once()
    anchored.rig.correct("later")
    keeper.run_once()
    lied = Anchor(seq=10**9, hash="f" * 64)
    bucket.append([AnchorNote(at="1999-01-01T00:00:00+00:00", chain="سجل/a b", anchor=lied)])
    [odd, *notes] = bucket.notes()
    assert (odd.chain, odd.anchor) == ("سجل/a b", lied)
    assert all(datetime.fromisoformat(note.at) >= began for note in (odd, *notes)), "the store's time, not the writer's"
    at = anchored.rig.audit.head(LINEAGE)[0]
    assert [note.anchor.seq for note in notes if note.chain == LINEAGE] == [at - 1, at]
    fine = verify("facts", "--no-mlflow")
    assert (fine.exit_code, f"the newest of line {at}" in fine.stdout) == (0, True)
    anchored.rewrite(with_another(at, actor="cli:ceo"))
    found = verify("facts", "--no-mlflow")
    assert found.exit_code == ExitCode.failed
    assert f"facts: broken at line {at}: the bucket of anchors says that at 2" in found.stderr
    monkeypatch.setenv("CORRIGENDA_ANCHOR_FILE", "anchors.jsonl")
    assert "got both" in verify("facts", "--no-mlflow").stderr
