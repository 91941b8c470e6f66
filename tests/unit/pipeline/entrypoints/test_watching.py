"""`status --watch` on a terminal and in a pipe, with standings that a test hands it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Settings
from pipeline.domain.errors import Unavailable
from pipeline.entrypoints.cli import standing

HEADING = "lineage  head"


def found(head: int) -> standing._Standing:
    """A standing of one lineage that does nothing."""
    row = {
        "lineage": "facts",
        "head": head,
        "champion": None,
        "hold": None,
        "edits": {},
        "doing": None,
        "waiting": [],
        "newest_version": None,
        "prior_strength": 1.0,
        "made_with_strength": 1.0,
        "upkeep": {},
        "ledger": {"rekeyed_seq": None, "edits_since": 0, "owed": []},
    }
    intake = {"received": 0, "duplicates": 0, "refused": 0}
    return standing._Standing(lineages=[row], intake=intake, owed={"owed": 0, "failing": 0, "given_up": 0})


def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, looks: list[standing._Standing | Exception]) -> None:
    """Watch until the looks are used up, as if somebody then pressed Ctrl-C."""
    left: Iterator[standing._Standing | Exception] = iter(looks)

    def look(*_: object) -> standing._Standing:
        match next(left, None):
            case None:
                raise KeyboardInterrupt
            case Exception() as error:
                raise error
            case one:
                return one

    monkeypatch.setattr(standing, "_standing", look)
    monkeypatch.setattr(standing, "WATCH_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        standing._watch(Settings(home=tmp_path), None)


def test_a_terminal_shows_each_look_in_place_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)

    watch(monkeypatch, tmp_path, [found(head) for head in range(6)])

    assert capsys.readouterr().out.count(HEADING) == 6 + 1  # the last one stays when the watch ends


def test_a_database_that_is_away_is_told_once_and_looked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = Unavailable("the database does not answer")

    watch(monkeypatch, tmp_path, [found(1), away, away, found(1), found(1), found(2)])

    shown = capsys.readouterr()
    assert shown.err.count("the database does not answer") == 1
    assert shown.out.count(HEADING) == 3
