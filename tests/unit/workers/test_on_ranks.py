"""What a training on ranks comes to, from how its ranks ended and what they said."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.domain.errors import EngineFailed
from pipeline.domain.formats.refusals import INTERRUPTED
from workers.lifetime import leave_last_words
from workers.on_ranks import _outcome, _read


@dataclass(frozen=True)
class Ended:
    """A rank that has ended, as torch tells it."""

    exitcode: int


def outcome(folder: Path, **statuses: int) -> int:
    """Of ranks by name: `r0`, `r1`."""
    failures: dict[int, Any] = {int(name[1:]): Ended(status) for name, status in statuses.items()}
    return _outcome(failures, folder)


def test_a_run_without_failures_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(tmp_path) == 0
    assert capsys.readouterr() == ("", "")


def test_what_was_said_first_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_last_words(tmp_path, 1, EngineFailed("expected room, got none"))
    leave_last_words(tmp_path, 0, RuntimeError("Connection reset by peer"))
    assert outcome(tmp_path, r0=1, r1=1) == 1
    assert capsys.readouterr() == ("", "expected room, got none\n")


def test_ranks_that_were_ended_because_of_another_are_not_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_last_words(tmp_path, 0, EngineFailed("expected edits, got none"))
    assert outcome(tmp_path, r0=1, r1=-signal.SIGTERM) == 1
    assert outcome(tmp_path, r0=1, r1=-signal.SIGKILL) == 128 + signal.SIGKILL
    assert outcome(tmp_path, r1=-signal.SIGTERM) == 128 + signal.SIGTERM
    ended = "rank 1 ended with status -9 (SIGKILL, as the kernel sends it when memory runs out) and said nothing\n"
    assert capsys.readouterr() == ("", f"expected edits, got none\n{ended}")


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_last_words(tmp_path, 0, EngineFailed("stopped; --resume goes on from the last state"))
    assert outcome(tmp_path, r0=INTERRUPTED, r1=-signal.SIGTERM) == INTERRUPTED
    assert capsys.readouterr().err.count("--resume goes on") == 1


@pytest.mark.parametrize(("program", "more"), [("training", ["--out", "run"]), ("evaluation", ["--edits", "8"])])
def test_an_interrupt_before_a_run_has_begun_promises_no_resume(program: str, more: list[str], tmp_path: Path) -> None:
    (tmp_path / "edits.jsonl").touch()
    words = ["--data", str(tmp_path / "edits.jsonl"), "--model", str(tmp_path), "--task", "causal"]
    assert _read(program, [*words, *(word.replace("run", str(tmp_path / "run")) for word in more)])() == "stopped"
