"""What a person sees of an evaluation: lines, a table, a picture."""

from __future__ import annotations

import struct
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from editors.evaluation.curves import PANELS, draw
from editors.evaluation.report import Reporter
from editors.measure.memory import WatchedMemory
from pipeline.domain.rank_api import tell


def point(edits: int, **changes: Any) -> dict[str, Any]:
    figures = {"edits": edits, "edit_success": 0.5, "greedy": {"edit_success": None}, "drawdown": 0.01}
    return figures | changes


def reporter(*, is_terminal: bool) -> tuple[Reporter, StringIO]:
    text = StringIO()
    return Reporter(Console(file=text, force_terminal=is_terminal, width=100, highlight=False)), text


def test_without_a_terminal_every_batch_and_checkpoint_is_a_plain_line() -> None:
    made, text = reporter(is_terminal=False)
    with made.following("sum", 4) as follower:
        follower("edited", 2, None)
        follower("measured", 4, point(4))
    assert text.getvalue().splitlines() == ["sum: 2/4 edited", "sum: 4/4 measured  edit 0.500"]


@pytest.mark.parametrize(("silence", "lines"), [(0.0, ["sum: 2/4 edited, pass 3 of at most 12"]), (3600.0, [])])
def test_a_step_of_a_batch_is_a_line_only_after_a_silence(
    silence: float, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editors.evaluation.report.SILENCE", silence)
    made, text = reporter(is_terminal=False)
    with made.following("sum", 4) as follower:
        follower("edited", 2, None)
        tell("pass", 3, 12)
    tell("pass", 4, 12)
    assert text.getvalue().splitlines() == ["sum: 2/4 edited", *lines]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_takes_a_while_is_said_before_it_begins(*, is_terminal: bool) -> None:
    made, text = reporter(is_terminal=is_terminal)
    with made.working("measuring the prior"):
        assert is_terminal or text.getvalue() == "measuring the prior\n"
    assert "measuring the prior" in text.getvalue()


def test_on_a_terminal_a_bar_moves_and_checkpoints_are_lines_above_it() -> None:
    made, text = reporter(is_terminal=True)
    with made.following("sum", 4) as follower:
        follower("edited", 2, None)
        tell("pass", 3, 12)
        follower("measured", 4, point(4))
    assert "sum: 4/4 measured  edit 0.500" in text.getvalue()
    assert "sum: 2/4 edited" not in text.getvalue()
    assert "4/4" in text.getvalue()


def test_the_table_has_a_column_a_solver_and_leaves_out_what_nobody_measured() -> None:
    made, text = reporter(is_terminal=False)
    made.table({"sum": point(4), "recursive": point(4, drawdown=None, edit_success=1.0)})
    lines = text.getvalue().splitlines()
    assert lines[0].split() == ["sum", "recursive"]
    assert [line.split()[-2:] for line in lines if line.startswith("edit success")] == [["0.500", "1.000"]]
    assert [line.split()[-2:] for line in lines if line.startswith("drawdown")] == [["+1.00%", "-"]]
    assert not any("portability" in line for line in lines)


@pytest.mark.parametrize("num_points", [1, 3])
def test_the_picture_is_the_same_bytes_for_the_same_figures(num_points: int, tmp_path: Path) -> None:
    solvers = {name: [point(2**i) for i in range(5, 5 + num_points)] for name in ("sum", "recursive")}
    solvers["sum"][-1]["drawdown"] = 1e6
    for name in ("one.png", "two.png"):
        draw(tmp_path / name, "a title", solvers, base={"fluency": 5.0, "drawdown": 0.0})
    content = (tmp_path / "one.png").read_bytes()
    assert content == (tmp_path / "two.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1200, 1250)


def test_every_panel_says_what_it_shows() -> None:
    assert len(PANELS) == 12
    assert len({panel.title for panel in PANELS}) == 12


def test_memory_of_watched_work_is_counted_and_other_memory_is_not() -> None:
    memory = WatchedMemory(torch.device("cpu"))
    with memory.watching():
        taken = torch.ones(2 * 2**20)
        del taken
    if memory.peak_bytes is None:
        pytest.skip("this system does not tell a process its peak of resident memory")
    first = memory.peak_bytes
    assert 7 * 2**20 < first < 24 * 2**20
    others = torch.ones(16 * 2**20)
    with memory.watching():
        kept = torch.ones(2 * 2**20)
    with memory.watching():
        more = torch.ones(2 * 2**20)
    assert 15 * 2**20 < memory.peak_bytes < 32 * 2**20
    assert len(others) > len(kept) + len(more)
