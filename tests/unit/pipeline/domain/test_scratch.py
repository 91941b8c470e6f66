"""Temporary folders go with their owner, also one that was killed, and nobody else's are touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.domain import scratch
from pipeline.domain.scratch import scratch_folder, sweep
from tests.support.paths import ROOT

OWNER = "import sys, time; from pipeline.domain.scratch import scratch_folder; f = scratch_folder('ranks'); "


@pytest.fixture(autouse=True)
def own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch._sweep_once.cache_clear()
    yield
    scratch._sweep_once.cache_clear()


def owner(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds one folder."""
    code = f"{OWNER} open(f.name + '/file', 'w').close(); print(f.name, flush=True); time.sleep(600)"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip()
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_folder_of_a_killed_process_goes_with_the_next_one_that_is_asked_for(tmp_path: Path) -> None:
    process = owner(tmp_path)
    (left,) = tmp_path.iterdir()
    assert sweep(tmp_path) == [], "its owner lives"
    assert left.is_dir()
    end(process)
    with scratch_folder("candidate") as ours:
        assert [str(path) for path in tmp_path.iterdir()] == [ours]
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_has_the_number_of_the_owner_is_not_the_owner(tmp_path: Path) -> None:
    with scratch_folder("ledger") as ours:
        machine, pid, start = Path(ours).name.split("-")[2].split(".")
        again = tmp_path / f"corrigenda-ledger-{machine}.{pid}.{int(start) + 1}-x"
        again.mkdir()
        assert sweep(tmp_path) == [again.name]
        assert Path(ours).is_dir()


def test_what_is_not_known_to_be_left_over_stays(tmp_path: Path) -> None:
    names = ["corrigenda-ranks-00000000.1.1-x", "corrigenda-", "corrigenda-abc", "other", "corrigenda-ranks-1.2-x"]
    for name in names:
        (tmp_path / name).mkdir()
    assert sweep(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == set(names), "another machine's, or none of ours"
