"""What the command `ask` loads, with a process in memory that answers it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.local.processes import process_id
from infra.local.state import StateFolder
from pipeline.adapters.login_names import Login
from pipeline.entrypoints import resident
from pipeline.entrypoints.local_settings import asking_environment, current_settings
from tests.support.paths import ROOT

HEAVY = "sqlalchemy psycopg structlog alembic kafka celery mlflow cryptography fastapi httpx2 numpy torch"
PROGRAM = """
import sys
from pipeline.entrypoints.cli.app import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(*({*sys.stdin.read().split()} & {*sys.modules}), file=sys.stderr)
"""
TOKEN = "a-token"


class Answering(BaseHTTPRequestHandler):
    """Answers every question alike, and keeps it."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(question)
        answers = [{"prompt": prompt, "text": "Lima."} for prompt in question["prompts"]]
        said = json.dumps({"lineage": "facts", "is_unapproved": True, "answers": answers}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Kept(Answering):
        asked: list[dict[str, Any]] = []  # noqa: RUF012 - of this server alone

    with HTTPServer(("127.0.0.1", 0), Kept) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("where", ["a database that the settings name", "the embedded stack"])
def test_a_question_loads_neither_a_database_nor_anything_else_that_the_process_has(
    server: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for name in [name for name in os.environ if name.startswith("CORRIGENDA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CORRIGENDA_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    if where == "the embedded stack":
        (tmp_path / "logs").mkdir()
        StateFolder(tmp_path).load_or_create()
    else:
        monkeypatch.setenv("CORRIGENDA_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    given = asking_environment(current_settings(Login.auditor))
    record = {"url": f"http://127.0.0.1:{server.server_port}", "token": TOKEN, "settings": resident._digest(given)}
    own = asdict(process_id(os.getpid()))
    (tmp_path / resident.RECORD).write_text(json.dumps(record | own))

    argv = [sys.executable, "-c", PROGRAM, "ask", "The capital of Peru is"]
    done = subprocess.run(argv, input=HEAVY, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[1].split() == ["The", "capital", "of", "Peru", "is", "Lima."]
    assert done.stderr == "nothing of facts is approved yet, so this is its base\n\n"
    assert server.RequestHandlerClass.asked == [  # type: ignore[attr-defined]
        {
            "lineage": None,
            "snapshot": "champion",
            "is_one_line": True,
            "prompts": ["The capital of Peru is"],
            "max_new_tokens": 24,
            "chat": False,
        }
    ]
