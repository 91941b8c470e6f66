"""The last words of a rank: all of them or none, and never in the way of its end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pipeline.domain.errors import EngineFailed
from workers.lifetime import first_to_fail, leave_last_words


def test_a_disk_that_takes_no_words_keeps_no_rank_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    leave_last_words(tmp_path, 0, EngineFailed("expected room, got none"))
    assert first_to_fail(tmp_path, {0: 1}) == (0, None)


@pytest.mark.parametrize(
    ("statuses", "cause"),
    [
        ({0: 1, 1: -signal.SIGKILL}, 1),
        ({0: 1, 1: -signal.SIGSEGV}, 1),
        ({0: 1, 1: -signal.SIGABRT}, 0),
        ({1: -signal.SIGABRT}, 1),
        ({1: 1, 2: 3}, 1),
    ],
    ids=str,
)
def test_the_rank_that_made_the_others_fail_is_the_cause(tmp_path: Path, statuses: dict[int, int], cause: int) -> None:
    leave_last_words(tmp_path, 0, MemoryError("3 GB"))
    assert first_to_fail(tmp_path, statuses)[0] == cause


def test_a_text_that_is_no_text_is_said_as_far_as_it_is_one(tmp_path: Path) -> None:
    leave_last_words(tmp_path, 0, ValueError("half \ud800 of a pair"))
    _, said = first_to_fail(tmp_path, {0: 1})
    assert said is not None
    assert said.message == "ValueError: half \\ud800 of a pair"


def test_what_a_rank_said_is_read_whole(tmp_path: Path) -> None:
    leave_last_words(tmp_path, 1, EngineFailed("expected room, got none"))
    rank, said = first_to_fail(tmp_path, {0: 1, 1: 1})
    assert rank == 1
    assert said is not None
    assert said.message == "expected room, got none"
