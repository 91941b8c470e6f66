"""What the commands show of side effects that failed for good, and how they are sent again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.outbox import SqlOutboxStore, owe
from pipeline.domain.retries import MAX_FAILURES
from pipeline.entrypoints.cli.app import app
from tests.support.store_rig import LINEAGE, StoreRig

Command = Callable[..., Result]


@pytest.fixture
def corrigenda(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools_close: None) -> Command:
    """Runs a command in this process on the database of this test."""
    for name in [name for name in os.environ if name.startswith("CORRIGENDA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", postgres_url)
    monkeypatch.setenv("CORRIGENDA_DATABASE_ROLE", "corrigenda_console")
    monkeypatch.setenv("CORRIGENDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORRIGENDA_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """The stores of the same database, where one side effect was given up and one is owed."""
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    outbox = SqlOutboxStore(rig.engine)
    with transaction(rig.engine) as connection:
        owe(connection, kind="register", dedup_key="register:broken", payload={"lineage": LINEAGE})
    for _ in range(MAX_FAILURES):
        rig.query("UPDATE outbox SET next_attempt_at = clock_timestamp()")
        for item in outbox.due():
            outbox.failed(item, error="KeyError: 'lineage'")
    with transaction(rig.engine) as connection:
        owe(connection, kind="doorbell", dedup_key="bell", payload={"lineage": LINEAGE})
    yield rig
    rig.close()


def outbox_check(corrigenda: Command) -> dict[str, object]:
    """What `doctor` says of side effects."""
    rows = json.loads(corrigenda("doctor", "--json").stdout)
    return next(row for row in rows if row["check"] == "side effects")


def test_a_side_effect_that_was_given_up_is_shown_and_sent_again(corrigenda: Command, rig: StoreRig) -> None:
    assert "side effects: 1 owed, 1 given up; see `corrigenda outbox list`" in corrigenda("status").stdout
    counts = json.loads(corrigenda("status", "--json").stdout)["side_effects"]
    assert (counts["owed"], counts["given_up"]) == (1, 1)
    found = outbox_check(corrigenda)
    assert not found["ok"]
    assert "corrigenda outbox resend --all" in str(found["detail"])
    (row,) = json.loads(corrigenda("outbox", "list", "--json").stdout)
    assert (row["kind"], row["error"]) == ("register", "KeyError: 'lineage'")
    assert "KeyError" in corrigenda("outbox", "list").stdout

    assert corrigenda("outbox", "resend", row["outbox_id"]).exit_code == 0
    assert outbox_check(corrigenda)["ok"]
    assert "side effects: 2 owed, 0 given up\n" in corrigenda("status").stdout
    last = rig.audit.events(LINEAGE)[-1]
    assert (last.action, last.subject) == ("side_effect:resent", row["outbox_id"])
    assert last.actor.startswith("cli:")


def test_all_are_sent_again_at_once(corrigenda: Command, rig: StoreRig) -> None:
    assert json.loads(corrigenda("outbox", "resend", "--all", "--json").stdout)["resent"] != []
    assert json.loads(corrigenda("outbox", "resend", "--all", "--json").stdout)["resent"] == []
    assert "no side effect was given up" in corrigenda("outbox", "list").stdout


@pytest.mark.parametrize("words", [[], ["7"], ["00000000-0000-0000-0000-000000000007"], ["7", "--all"]])
def test_a_wrong_choice_is_one_sentence(corrigenda: Command, rig: StoreRig, words: list[str]) -> None:
    result = corrigenda("outbox", "resend", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("corrigenda: expected ")
    assert result.stderr.count("\n") == 1


def test_a_webhook_that_was_given_up_is_told_and_fails_nothing(corrigenda: Command, rig: StoreRig) -> None:
    rig.query("UPDATE outbox SET kind = 'webhook' WHERE given_up_at IS NOT NULL")
    found = outbox_check(corrigenda)
    assert found["ok"]
    assert found["detail"] == "1 are owed, none was given up but 1 webhook: `corrigenda outbox list`"
    assert "1 given up" in corrigenda("status").stdout


def test_a_receiver_that_is_away_is_told_of_before_anything_is_given_up(corrigenda: Command, rig: StoreRig) -> None:
    corrigenda("outbox", "resend", "--all")
    assert "no side effect fails" in corrigenda("outbox", "list", "--failing").stdout
    rig.query(
        "UPDATE outbox SET kind = 'webhook', attempts = 3, error = 'got 503', created_at = created_at - interval '3 h'"
        " WHERE kind = 'register'"
    )
    assert "2 owed (1 fail: `corrigenda outbox list --failing`), 0 given up" in corrigenda("status").stdout
    found = outbox_check(corrigenda)
    assert found["ok"], "it is not ours to mend"
    assert "1 webhook waits for a receiver that is away" in str(found["detail"])
    (row,) = json.loads(corrigenda("outbox", "list", "--failing", "--json").stdout)
    assert (row["kind"], row["attempts"], row["error"]) == ("webhook", 3, "got 503")


def test_what_is_owed_for_too_long_fails_the_check(corrigenda: Command, rig: StoreRig) -> None:
    corrigenda("outbox", "resend", "--all")
    rig.query("UPDATE outbox SET created_at = created_at - interval '11 minutes'")
    found = outbox_check(corrigenda)
    assert not found["ok"]
    assert "2 are owed, the oldest since " in str(found["detail"])
