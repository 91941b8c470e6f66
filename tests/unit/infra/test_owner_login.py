"""The owner's login reaches PostgreSQL's programs by variables of a shell, and by no command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.local import owner_login
from infra.local.owner_login import variables
from infra.local.state import StateFolder


def test_a_url_becomes_the_variables_of_libpq() -> None:
    assert variables("postgresql://owner:p%40ss%27@127.0.0.1:5433/facts") == {
        "PGHOST": "127.0.0.1",
        "PGPORT": "5433",
        "PGUSER": "owner",
        "PGDATABASE": "facts",
        "PGPASSWORD": "p@ss'",
    }


def test_a_shell_takes_the_lines_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = StateFolder(tmp_path)
    with folder.locked():
        password = folder.load_or_create().password
    monkeypatch.setattr(sys, "argv", ["owner_login", str(tmp_path)])
    assert owner_login.main() == 0
    script = capsys.readouterr().out + 'echo "$PGPASSWORD"; command -v pg_dump'
    said = subprocess.run(["/bin/sh", "-c", script], env={}, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[0] == password
    assert said.splitlines()[1].endswith("/pginstall18/bin/pg_dump")


def test_a_folder_without_a_stack_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["owner_login", str(tmp_path / "none")])
    assert owner_login.main() == 3
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "nothing was ever started in" in told.err
