"""The main job on real parts: every process, the real model, from a topic to an approved model and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import patience

pytestmark = pytest.mark.slow


def test_the_main_job_runs_balances_and_leaves_nothing_running(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    command = [sys.executable, "-m", "pipeline.entrypoints.cli", "demo", "--home", str(home), "--corrections", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(600), check=False)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    last = json.loads(done.stdout.strip().splitlines()[-1])

    assert last["produced"] == last["accepted"] + last["duplicates"] + last["dead_letters"]
    assert last["accepted"] == last["applied"] + last["superseded"] + last["rejected"] + last["reverted"]
    assert last["accepted"] >= 12
    assert last["duplicates"] >= 3
    assert last["dead_letters"] >= 5
    assert last["superseded"] == 3, "two of one fact in the stream, and two more corrections of it"
    assert last["rejected"] >= 1, "one correction fails a gate by what is measured"
    assert last["reverted"] == 1
    assert last["champion"] == last["snapshots"], "the head was approved last"
    assert last["edit_success"] >= 0.95
    assert last["locality"] >= 0.8
    assert last["num_generalization_other_context"] >= 7
    assert 0 < last["generalization_other_context"] <= 1, "asked of the champion in words the editor never saw"
    assert last["num_chat"] >= 7
    assert 0 < last["chat"] <= 1, "asked of the champion in the chat template"
    assert sum(last["seconds_by_phase"].values()) <= last["seconds"] + 0.1, "each is rounded to hundredths"
    assert last["audit_ok"] is True
    assert not _processes_of(home)
    editor = "editor gradient (untrained)"
    reports = [line for line in done.stdout.splitlines() if "passed its gates" in line]
    assert len(reports) == last["snapshots"]
    assert all(editor in line for line in reports), "each gate report names the editor"


def _processes_of(home: Path) -> list[str]:
    """Command lines of live processes that name the stack's folder or were started with it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(home).encode() in environment + line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found
