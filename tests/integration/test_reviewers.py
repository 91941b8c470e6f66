"""Who decides is who logged in: reviewers by their own database login, everybody else as claimed, everywhere."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from pipeline.adapters import schema
from pipeline.adapters.logins import Login
from pipeline.adapters.people import add_person, as_reviewer, remove_person
from pipeline.adapters.sql.audit import AuditLine, SqlAuditStore, append_all
from pipeline.adapters.sql.database.engine import connect, transaction
from pipeline.adapters.sql.review import SqlReviewStore
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.domain.review.approvals import Channel, Decision
from pipeline.domain.review.people import Role
from pipeline.domain.review.policies import NAMED, ApprovalRule
from pipeline.domain.snapshots import Snapshot
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode
from pipeline.entrypoints.local_settings import cli_actor
from tests.support.factories import make_request
from tests.support.store_rig import LINEAGE, StoreRig

Command = Callable[..., Result]
APPROVED, REJECTED = Decision.approved, Decision.rejected


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    made = StoreRig(url=postgres_url, folder=tmp_path)
    made.new_lineage()
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    """A reviewer of this test; roles are shared by every database of the server."""
    return f"anna_{uuid4().hex[:12]}"


@pytest.fixture
def corrigenda(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools_close: None) -> Command:
    """Runs a command as a person whose environment says that they are the boss."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "ceo")
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", postgres_url)
    monkeypatch.setenv("CORRIGENDA_DATABASE_ROLE", Login.console)
    monkeypatch.setenv("CORRIGENDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORRIGENDA_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture
def as_anna(rig: StoreRig, name: str) -> Iterator[SqlReviewStore]:
    """The decisions of a reviewer who logged in."""
    yield from reviewing(rig, name)


def add_reviewer(url: str, name: str, *, actor: str) -> str:
    return add_person(url, name, [Role.reviewer], actor=actor)


def reviewing(rig: StoreRig, name: str) -> Generator[SqlReviewStore]:
    engine = connect(as_reviewer(rig.url, add_reviewer(rig.url, name, actor="test")), "")
    try:
        yield SqlReviewStore(engine)
    finally:
        engine.dispose()


def snapshot_of(rig: StoreRig, *requests: str, submitted_by: str | None) -> Snapshot:
    rig.submit(*(make_request(one, prompt=f"The capital of {one} is", submitted_by=submitted_by) for one in requests))
    return rig.commit_batch(rig.acquire())


def actors(rig: StoreRig, *actions: AuditAction) -> set[str]:
    return {event.actor for event in rig.audit.events(LINEAGE, limit=10_000) if event.action in actions}


def test_a_name_from_the_environment_is_not_believed_and_who_ran_it_is_marked_as_claimed_everywhere(
    corrigenda: Command, rig: StoreRig
) -> None:
    snapshot_of(rig, "r1", submitted_by="agent")
    assert corrigenda("approve", "head").exit_code == ExitCode.done
    me = cli_actor()
    assert me.startswith("cli:")
    assert me.endswith(" (claimed)")
    [row] = rig.query("SELECT actor, is_claimed FROM approvals")
    assert (row["actor"], row["is_claimed"]) == (me, True)
    assert actors(rig, AuditAction.snapshot_approved, AuditAction.champion_moved) == {me}
    [view] = rig.query("SELECT approved_by, approval_is_claimed FROM edit_history")
    assert (view["approved_by"], view["approval_is_claimed"]) == (me, True)
    [history] = rig.query("SELECT decided_by, approved_by, decision_is_claimed FROM lineage_history")
    assert (history["decided_by"], history["approved_by"], history["decision_is_claimed"]) == (me, me, True)
    said = [
        corrigenda(*words.split()).stdout
        for words in ("show r1", "show r1 --json", "audit show facts", "audit show facts --json", "audit export facts")
    ]
    for one in said:
        assert me.split()[0] in one
        assert "(claimed)" in one
        assert "ceo" not in one


def test_a_reviewer_with_a_token_is_recorded_by_the_name_that_logged_in(
    corrigenda: Command, rig: StoreRig, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot_of(rig, "r1", submitted_by="agent")
    snapshot_of(rig, "r2", submitted_by="agent")
    added = corrigenda("reviewer", "add", name)
    assert added.exit_code == ExitCode.done, added.output
    file = tmp_path / "home" / "reviewers" / f"{name}.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text().strip()
    assert token.split(":")[1] not in added.output
    listed = corrigenda("person", "list").output
    assert re.search(rf"^{name} +reviewer +2\d\d\d-", listed, re.MULTILINE)
    assert token.split(":")[1] not in listed
    monkeypatch.setenv("CORRIGENDA_REVIEWER_TOKEN_FILE", str(file))
    assert corrigenda("approve", "1").exit_code == ExitCode.done
    monkeypatch.delenv("CORRIGENDA_REVIEWER_TOKEN_FILE")
    monkeypatch.setenv("CORRIGENDA_REVIEWER_TOKEN", token)
    told = corrigenda("approve", "head", "--reason", "read it")
    assert told.stdout == "approved snapshot 2 of facts; it is the champion\n"
    assert f"approved by reviewer:{name}, 2" in corrigenda("show", "head").stdout
    for words in (("rollback", "1"), ("revert", "r1")):
        assert corrigenda(*words).exit_code == ExitCode.done
    rows = rig.query("SELECT DISTINCT actor, is_claimed FROM approvals")
    assert [(row["actor"], row["is_claimed"]) for row in rows] == [(f"reviewer:{name}", False)]
    decided = (AuditAction.snapshot_approved, AuditAction.champion_moved, AuditAction.removal_requested)
    assert actors(rig, *decided) == {f"reviewer:{name}"}
    lines = [json.loads(line) for line in corrigenda("audit", "export", "facts").stdout.splitlines()]
    assert {line["is_claimed"] for line in lines if line["actor"] == f"reviewer:{name}"} == {False}
    [added_line] = [event for event in rig.audit.events("system") if event.action == AuditAction.reviewer_added]
    assert (added_line.subject, added_line.actor) == (f"reviewer:{name}", cli_actor())
    assert rig.audit.verify(LINEAGE) is None
    assert rig.audit.verify("system") is None


def test_a_worker_carries_out_what_a_reviewer_asked_for_in_their_name_and_nothing_else(
    rig: StoreRig, as_anna: SqlReviewStore, name: str
) -> None:
    snapshot_of(rig, "r1", submitted_by="agent")
    as_anna.request_revert(LINEAGE, [rig.edit_id("r1")], actor=f"reviewer:{name}", reason="wrong")
    rig.commit_removal(rig.acquire())
    assert actors(rig, AuditAction.edit_reverted) == {f"reviewer:{name}"}
    for action in (AuditAction.snapshot_approved, AuditAction.champion_moved, AuditAction.removal_requested):
        line = AuditLine(chain=LINEAGE, actor=f"reviewer:{name}", action=action, subject="x", payload={})
        with pytest.raises(Misconfigured, match="logged in"), transaction(rig.engines[Login.editor]) as connection:
            append_all(connection, [line])


@pytest.mark.parametrize("login", [*Login, "", "corrigenda_app", "corrigenda_reviewer"])
def test_nobody_writes_a_decision_in_a_reviewers_name(rig: StoreRig, name: str, login: str) -> None:
    made = snapshot_of(rig, "r1", submitted_by="agent")
    add_reviewer(rig.url, name, actor="test")
    for changes in (
        {"actor": f"reviewer:{name}", "is_claimed": False},
        {"actor": f"reviewer:{name}", "is_claimed": True},
        {"actor": "reviewer:", "is_claimed": False},
        *([{"actor": "mlflow-user:ceo", "is_claimed": False}] if login != Login.control else []),
    ):
        engine = connect(rig.url, login)
        with pytest.raises(Misconfigured, match="may not do this"):
            SqlReviewStore(engine).decide(rig.asked(made, APPROVED, **changes))
        engine.dispose()
    assert rig.lineage().champion_id is None


@pytest.mark.parametrize("login", [Login.web, Login.console, Login.control, Login.editor, "corrigenda_app"])
def test_an_operators_name_stands_in_lines_about_operating_alone(rig: StoreRig, name: str, login: str) -> None:
    made = snapshot_of(rig, "r1", submitted_by="agent")
    add_person(rig.url, name, [Role.operator, Role.requester], actor="test")
    add_person(rig.url, f"b{name}", [Role.reviewer], actor="test")
    removal = SqlReviewStore(rig.engines[Login.web])
    removal.request_revert(LINEAGE, [rig.edit_id("r1")], actor=f"person:b{name}", reason="wrong")
    rig.new_lineage("other")
    engine, mine, theirs = connect(rig.url, login), f"person:{name}", f"person:b{name}"
    with pytest.raises(Misconfigured, match="may not do this"):
        SqlReviewStore(engine).decide(rig.asked(made, APPROVED, actor=mine, is_claimed=False))
    is_web, is_worker = login == Login.web, login in (Login.editor, "corrigenda_app")
    may_write = {
        (LINEAGE, AuditAction.lineage_held, mine): is_web,
        (LINEAGE, AuditAction.edit_released, mine): is_web,
        ("system", AuditAction.side_effect_resent, mine): is_web,
        (LINEAGE, AuditAction.snapshot_approved, mine): False,
        (LINEAGE, AuditAction.champion_moved, mine): False,
        (LINEAGE, AuditAction.edit_reverted, mine): False,
        (LINEAGE, AuditAction.snapshot_approved, theirs): is_web,
        # What a reviewer asked for is carried out in their name, by the worker, and in that lineage.
        (LINEAGE, AuditAction.edit_reverted, theirs): is_web or is_worker,
        ("other", AuditAction.edit_reverted, theirs): is_web,
    }
    for (chain, action, actor), is_theirs in may_write.items():
        line = AuditLine(chain=chain, actor=actor, action=action, subject="x", payload={})
        refused = nullcontext() if is_theirs else pytest.raises(Misconfigured, match="logged in")
        with refused, transaction(engine) as connection:
            append_all(connection, [line])
    engine.dispose()
    assert rig.query("SELECT * FROM approvals") == []


def test_a_name_that_nobody_vouches_for_is_claimed_whatever_a_process_says_of_it(rig: StoreRig) -> None:
    made = snapshot_of(rig, "r1", submitted_by="agent")
    assert rig.decide(made, APPROVED, actor="mlflow:ceo", is_claimed=False).is_accepted
    assert [row["is_claimed"] for row in rig.query("SELECT is_claimed FROM approvals")] == [True]


def test_a_user_of_mlflow_who_logged_in_there_is_known_by_the_control_worker(rig: StoreRig) -> None:
    rig.lineages.set_approval_policy(LINEAGE, NAMED[ApprovalRule.four_eyes], actor="test")
    first, second = snapshot_of(rig, "r1", submitted_by="bob"), snapshot_of(rig, "r2", submitted_by="ada")
    control = SqlReviewStore(rig.engines[Login.control])
    asked = rig.asked(second, APPROVED, actor="mlflow-user:ada", is_claimed=False, channel=Channel.registry)
    assert "asked for r2 yourself" in control.decide(asked).reason
    asked = rig.asked(first, APPROVED, actor="mlflow-user:ada", is_claimed=False, channel=Channel.registry)
    assert control.decide(asked).is_accepted
    assert actors(rig, AuditAction.champion_moved) == {"mlflow-user:ada"}
    assert {row["is_claimed"] for row in rig.query("SELECT is_claimed FROM approvals")} == {False}


def test_one_reviewer_does_not_write_in_anothers_name_or_change_the_rule(
    rig: StoreRig, as_anna: SqlReviewStore, name: str
) -> None:
    made = snapshot_of(rig, "r1", submitted_by="agent")
    others = reviewing(rig, f"b{name}")
    bob = next(others)
    assert (as_anna.reviewer(), bob.reviewer()) == (name, f"b{name}")
    with pytest.raises(Misconfigured, match="may not do this"):
        bob.decide(rig.asked(made, APPROVED, actor=f"reviewer:{name}", is_claimed=False))
    for change in (
        "UPDATE lineages SET approval_rule = 'anyone'",
        "UPDATE lineages SET approval_policy = NULL",
        f"GRANT corrigenda_reviewer TO {Login.console}",
    ):
        with pytest.raises(Misconfigured, match="may not do this"), transaction(bob._engine) as connection:
            connection.execute(text(change))
    assert bob.decide(rig.asked(made, APPROVED, actor=f"reviewer:b{name}", is_claimed=False)).is_accepted
    others.close()


@pytest.mark.parametrize("rule", [ApprovalRule.authenticated, ApprovalRule.four_eyes])
@pytest.mark.parametrize("decision", [APPROVED, REJECTED])
def test_a_lineage_may_refuse_names_that_are_only_claimed(
    rig: StoreRig, as_anna: SqlReviewStore, name: str, rule: ApprovalRule, decision: Decision
) -> None:
    made = snapshot_of(rig, "r1", submitted_by="agent")
    rig.lineages.set_approval_policy(LINEAGE, NAMED[rule], actor="cli:operator (claimed)")
    for actor, channel in (("cli:ceo (claimed)", Channel.cli), ("mlflow:unknown (claimed)", Channel.registry)):
        refused = rig.decide(made, decision, actor=actor, channel=channel)
        assert (refused.is_accepted, "reviewers who log in" in refused.reason) == (False, True)
    values = "lineage_id, snapshot_id, snapshot_digest, decision, actor, is_claimed, reason, channel"
    forged = f"INSERT INTO approvals ({values}) SELECT lineage_id, snapshot_id, digest, '{decision.value}', 'cli:ceo', "
    with pytest.raises(Misconfigured, match="reviewers who log in"), transaction(rig.engine) as connection:
        connection.execute(text(f"{forged} true, '', 'cli' FROM snapshots"))
    assert as_anna.decide(rig.asked(made, decision, actor=f"reviewer:{name}", is_claimed=False)).is_accepted
    [changed] = [event for event in rig.audit.events(LINEAGE) if event.action == AuditAction.lineage_ruled]
    assert json.loads(changed.payload).items() >= {"approval_rule": rule.value, "was": "anyone"}.items()


def test_with_four_eyes_nobody_approves_what_they_asked_for(rig: StoreRig, as_anna: SqlReviewStore, name: str) -> None:
    mine = f"reviewer:{name}"
    rig.lineages.set_approval_policy(LINEAGE, NAMED[ApprovalRule.four_eyes], actor="test")
    others = reviewing(rig, f"b{name}")
    bob = next(others)

    def anna(snapshot: Snapshot, decision: Decision = APPROVED) -> str:
        return as_anna.decide(rig.asked(snapshot, decision, actor=mine, is_claimed=False)).reason

    # Under an other spelling, in a snapshot below, beside others'.
    snapshot_of(rig, "r1", "r2", submitted_by="agent")
    snapshot_of(rig, "r3", submitted_by=f" cli:{name.upper()}")
    third = snapshot_of(rig, "r4", submitted_by="agent")
    assert anna(third) == "you asked for r3 yourself; somebody else has to approve it"
    assert bob.decide(rig.asked(third, APPROVED, actor=f"reviewer:b{name}", is_claimed=False)).is_accepted
    # What is live already was approved by somebody else.
    assert anna(snapshot_of(rig, "r5", submitted_by="agent")) == ""
    # A revert is asked for too.
    as_anna.request_revert(LINEAGE, [rig.edit_id("r1")], actor=mine, reason="wrong")
    without = rig.commit_removal(rig.acquire())
    assert anna(without).startswith("you asked for the removal ")
    assert anna(without, REJECTED) == ""
    others.close()


def test_with_four_eyes_an_edit_that_nobody_submitted_is_approved_by_nobody(
    rig: StoreRig, as_anna: SqlReviewStore, name: str
) -> None:
    rig.lineages.set_approval_policy(LINEAGE, NAMED[ApprovalRule.four_eyes], actor="test")
    made = snapshot_of(rig, "r1", submitted_by=None)
    refused = as_anna.decide(rig.asked(made, APPROVED, actor=f"reviewer:{name}", is_claimed=False))
    assert refused.reason == "nobody is named as the submitter of r1, so it cannot be told from your own"


def test_tokens_that_others_can_read_or_that_are_wrong_old_or_taken_back_open_nothing(
    corrigenda: Command, rig: StoreRig, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot_of(rig, "r1", submitted_by="agent")
    file = tmp_path / "token"
    assert corrigenda("reviewer", "add", name, "--out", str(file)).exit_code == ExitCode.done
    old = file.read_text()
    assert corrigenda("reviewer", "add", name, "--out", str(file)).exit_code == ExitCode.done
    new = file.read_text().strip()
    monkeypatch.setenv("CORRIGENDA_REVIEWER_TOKEN_FILE", str(file))
    os.chmod(file, 0o640)
    found = corrigenda("approve", "head")
    assert (found.exit_code, "mode 640" in found.stderr) == (ExitCode.misconfigured, True)
    monkeypatch.delenv("CORRIGENDA_REVIEWER_TOKEN_FILE")
    for token in (old, f"{name}:guessed", "nonsense", f"{Login.console}:x", "corrigenda:x", ":x", f"{name}:"):
        monkeypatch.setenv("CORRIGENDA_REVIEWER_TOKEN", token)
        found = corrigenda("approve", "head")
        assert found.exit_code == ExitCode.misconfigured, token
    assert old.split(":")[1].strip() not in found.stderr
    monkeypatch.setenv("CORRIGENDA_REVIEWER_TOKEN", new)
    assert corrigenda("reviewer", "remove", name).exit_code == ExitCode.done
    assert corrigenda("approve", "head").exit_code == ExitCode.misconfigured
    assert corrigenda("reviewer", "remove", name).exit_code == ExitCode.usage
    assert rig.query("SELECT * FROM approvals") == []


def test_a_reviewer_who_was_removed_is_added_again_under_the_same_name(
    corrigenda: Command, rig: StoreRig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot_of(rig, "r1", submitted_by="agent")
    add_person(rig.url, name, [Role.requester], actor="test")
    first = add_reviewer(rig.url, name, actor="test")
    remove_person(rig.url, name, [Role.reviewer], actor="test")
    again = add_reviewer(rig.url, name, actor="test")
    remove_person(rig.url, name, actor="test")
    last = add_reviewer(rig.url, name, actor="test")
    for token, is_good in ((first, False), (again, False), (last, True)):
        monkeypatch.setenv("CORRIGENDA_REVIEWER_TOKEN", token)
        done = corrigenda("approve", "head", "--reason", "back again")
        assert (done.exit_code == ExitCode.done) is is_good, done.output
    assert [row["actor"] for row in rig.query("SELECT actor FROM approvals")] == [f"reviewer:{name}"]
    assert rig.query("SELECT roles, removed_at FROM people") == [{"roles": ["reviewer"], "removed_at": None}]
    noted = [event.action.value for event in rig.audit.events("system") if event.subject == f"reviewer:{name}"]
    assert noted == ["reviewer:added", "reviewer:removed"] * 2 + ["reviewer:added"]
    # The name is somebody else's meanwhile.
    remove_person(rig.url, name, actor="test")
    rig.query(f"ALTER ROLE {name} LOGIN")
    with pytest.raises(InvalidInput, match="none of our reviewers"):
        add_reviewer(rig.url, name, actor="test")


@pytest.mark.parametrize(
    "bad", ["corrigenda", Login.console, "postgres", "pg_monitor", "Anna", "a b", "", "a:b", 'a"b']
)
def test_a_reviewer_is_nobody_elses_role(rig: StoreRig, bad: str) -> None:
    with pytest.raises(InvalidInput, match="expected a person's name"):
        add_reviewer(rig.url, bad, actor="test")


def test_a_role_that_is_somebody_elses_is_not_made_a_reviewer(rig: StoreRig, name: str) -> None:
    rig.query(f"CREATE ROLE {name} LOGIN")
    with pytest.raises(InvalidInput, match="no role of the database has"):
        add_reviewer(rig.url, name, actor="test")
    with pytest.raises(InvalidInput, match="name of a reviewer"):
        remove_person(rig.url, name, [Role.reviewer], actor="test")
    # A login that an administrator makes a member, for example one of a directory, is a reviewer all the same.
    rig.query(f"ALTER ROLE {name} PASSWORD 'of-a-directory'")
    rig.query(f"GRANT corrigenda_reviewer TO {name}")
    engine = connect(as_reviewer(rig.url, f"{name}:of-a-directory"), "")
    assert SqlReviewStore(engine).reviewer() == name
    engine.dispose()


def test_reviewers_are_added_by_the_owner_alone(
    corrigenda: Command, rig: StoreRig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = add_reviewer(rig.url, name, actor="test")
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", as_reviewer(rig.url, token).replace("+psycopg", ""))
    monkeypatch.setenv("CORRIGENDA_DATABASE_ROLE", "")
    assert corrigenda("reviewer", "add", f"b{name}").exit_code == ExitCode.misconfigured
    assert corrigenda("lineage", "approvals", LINEAGE, "anyone").exit_code == ExitCode.done
    rig.lineages.set_approval_policy(LINEAGE, NAMED[ApprovalRule.four_eyes], actor="test")
    assert corrigenda("lineage", "approvals", LINEAGE, "anyone").exit_code == ExitCode.misconfigured


def test_approvals_and_lines_of_the_version_before_are_claimed_and_verify(
    empty_postgres_url: str, corrigenda: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.upgrade(empty_postgres_url, "0011")
    engine = connect(empty_postgres_url, "")
    with transaction(engine) as connection:
        line = {
            "chain": "system",
            "action": AuditAction.champion_moved,
            "subject": "x",
            "payload": {"is_claimed": False},
        }
        append_all(connection, [AuditLine(actor="cli:ceo", **line)])  # type: ignore[arg-type]
        for change in OLD_APPROVAL:
            connection.execute(text(change))
    schema.upgrade(empty_postgres_url)
    with psycopg.connect(empty_postgres_url) as owner:
        assert owner.execute("SELECT actor, is_claimed FROM approvals").fetchall() == [("cli:ceo", True)]
    assert SqlAuditStore(engine).verify("system") is None
    engine.dispose()
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", empty_postgres_url)
    assert "cli:ceo (claimed)" in corrigenda("audit", "show", "system").stdout
    exported: dict[str, Any] = json.loads(corrigenda("audit", "export", "system").stdout)
    assert (exported["actor"], exported["is_claimed"]) == ("cli:ceo", True)


OLD_APPROVAL = (
    "INSERT INTO lineages (name, task, base_ref, base_digest, editor, editor_digest, policy, prior, baseline)"
    " VALUES ('facts', 'causal', 'r', 'd', '{}', 'd', '{}', '{}', '{}')",
    "INSERT INTO gate_reports (lineage_id, verdict, policy_digest, probe_set_digest, report)"
    " SELECT lineage_id, 'passed', 'd', 'd', '{}' FROM lineages",
    "INSERT INTO snapshots"
    " (lineage_id, seq, basis, delta, delta_digest, digest, gate_report_id, lease_epoch, num_active)"
    " SELECT lineage_id, 1, 'base', '{}', 'd', 'd', gate_report_id, 1, 0 FROM gate_reports",
    "INSERT INTO approvals (lineage_id, snapshot_id, snapshot_digest, decision, actor, is_claimed, reason, channel)"
    " SELECT lineage_id, snapshot_id, digest, 'approved', 'cli:ceo', false, '', 'cli' FROM snapshots",
)
