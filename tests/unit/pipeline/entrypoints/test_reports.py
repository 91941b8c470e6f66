"""Gates as commands show them: what was measured is a table, what was not is one line."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.entrypoints.reports import print_gates


def row(metric: str, value: float | None) -> dict[str, Any]:
    verdict = "passed" if value is not None else "not_measured"
    return {"metric": metric, "value": value, "bound": 0.9, "side": "minimum", "against": "base", "verdict": verdict}


def test_what_was_not_measured_is_named_below_what_was(capsys: pytest.CaptureFixture[str]) -> None:
    print_gates([row("edit_success", 1.0), row("retention", None), row("locality", 0.961), row("chat_success", None)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["edit_success", "1"], ["locality", "0.961"]]
    assert lines[3:] == ["not measured: retention, chat_success"]


def test_where_all_was_measured_no_line_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    print_gates([row("edit_success", 1.0)])
    assert "not measured" not in capsys.readouterr().out
