"""The queries of AUDITING.md on a real history, as the login that auditors have, and what they read of a long one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.adapters.logins import Login
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode
from tests.support.audited_history import write_history
from tests.support.large_lineage import fill
from tests.support.paths import ROOT
from tests.support.store_rig import StoreRig

QUESTION = re.compile(r"^### (\d+)\. (.+)\n\n(?:.+\n)+\n```sql\n((?:.+\n)+)```\n\n```\n((?:.*\n)+?)```$", re.MULTILINE)
QUESTIONS = QUESTION.findall((ROOT / "AUDITING.md").read_text(encoding="utf-8"))
LARGE = {"edit_requests", "edit_rows", "snapshots", "approvals", "audit_events", "batch_edits", "edit_batches"}
ABOUT_ONE = {"1", "5", "7"}
"""Questions whose answer is a few rows, however many there are."""
ALSO_ASKED = {
    "an edit": "SELECT * FROM edit_history WHERE lineage = 'facts' AND request_id = 'old-77'",
    "a prompt": "SELECT * FROM request_log WHERE lineage = 'facts' AND prompt = 'fact 77'",
    "an edit's times": "SELECT * FROM edit_times WHERE lineage = 'facts' AND request_id = 'old-77'",
    "an edit's snapshots": "SELECT seq FROM snapshot_contents WHERE edit_id = uuidv7()",
    "the decisions about a snapshot": "SELECT * FROM decisions WHERE lineage = 'facts' AND seq = 7",
}
ALL_APPROVED = """
INSERT INTO approvals (lineage_id, snapshot_id, snapshot_digest, decision, actor, is_claimed, reason, channel)
    SELECT lineage_id, snapshot_id, digest, 'approved', 'cli:x (claimed)', true, '', 'cli' FROM snapshots ORDER BY seq;
UPDATE snapshots SET status = 'approved';
VACUUM ANALYZE
"""


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """Every store on a fresh database."""
    made = StoreRig(url=postgres_url, folder=tmp_path)
    yield made
    made.close()


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time zone of the outputs."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def test_auditing_md_has_ten_questions_each_with_its_query_and_output() -> None:
    assert [number for number, *_ in QUESTIONS] == [str(number) for number in range(1, 11)]


def test_an_auditor_who_asks_what_auditing_md_asks_gets_what_it_shows(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch, pools_close: None, utc: None
) -> None:
    write_history(rig)
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", rig.url)
    monkeypatch.setenv("CORRIGENDA_DATABASE_ROLE", Login.auditor)
    shown = {number: output for number, _, _, output in QUESTIONS}
    answers = {number: CliRunner().invoke(app, ["sql", query]) for number, _, query, _ in QUESTIONS}
    assert {number: answer.output for number, answer in answers.items()} == shown
    assert all(answer.exit_code == ExitCode.done for answer in answers.values())


def test_a_question_about_one_fact_or_one_edit_scans_no_large_table(rig: StoreRig) -> None:
    rig.new_lineage()
    fill(rig, 3_000, batch_size=4)
    for statement in ALL_APPROVED.split(";"):
        rig.owner.execute(statement.encode())
    asked = {f"{number}. {title}": query for number, title, query, _ in QUESTIONS if number in ABOUT_ONE} | ALSO_ASKED
    with rig.owner.transaction():
        rig.owner.execute(b"SET LOCAL ROLE corrigenda_auditor")
        scanned = {title: sorted(LARGE & set(_scanned(rig, query))) for title, query in asked.items()}
    assert {title: names for title, names in scanned.items() if names} == {}


def _scanned(rig: StoreRig, query: str) -> Iterator[str]:
    """Yield the tables of which the planner reads every row."""
    [row] = rig.query(f"EXPLAIN (FORMAT JSON) {query.rstrip().rstrip(';').replace('%', '%%')}")
    todo: list[dict[str, Any]] = [row["QUERY PLAN"][0]["Plan"]]
    while todo:
        node = todo.pop()
        todo += node.get("Plans", [])
        if node["Node Type"] == "Seq Scan":
            yield node["Relation Name"]
