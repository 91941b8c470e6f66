"""How tests run side by side: what they share, what is their own, and how long they wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import shared
from tests.support.waiting import eventually, patience


def test_what_is_shared_is_made_once_and_again_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared.VARIABLE, str(tmp_path))
    made = []

    def make(folder: Path) -> None:
        assert not list(folder.iterdir()), "what a failure left is gone"
        (folder / "file").write_text("made")
        made.append(folder)
        if len(made) == 1:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        shared.made_once("thing", make)
    folders = {shared.made_once("thing", make) for _ in range(3)}
    assert folders == {tmp_path / "thing"}
    assert len(made) == 2
    assert (tmp_path / "thing" / "file").read_text() == "made"


def test_no_two_workers_have_a_redis_database_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    found = []
    for name in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", name)
        found += shared.own_redis_databases()
    assert sorted(found) == list(range(1, shared.NUM_REDIS_DATABASES)), "all but the stack's own"


def test_a_wait_grows_with_the_load_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, times in ((0.1, 1.0), (2.0, 1.0), (12.0, 6.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert patience(10.0) == 10.0 * times


def test_a_wait_in_vain_says_what_for() -> None:
    with pytest.raises(AssertionError, match="in vain for a sign"):
        eventually(lambda: False, lambda: "a sign", seconds=0.0)
    eventually(lambda: True, "nothing", seconds=0.0)
