"""Gates as commands show them: what was measured is a table, what was not is one line."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.entrypoints.reports import print_answers, print_gates


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


def test_each_answer_has_a_mark_that_says_whether_it_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    request = {"prompt": "The capital of Chad is", "target_new": "N'Djamena", "question": "What is it?"}
    score = {
        "generated": "N'Djamena.",
        "generated_before": "Lagos",
        "free_success": True,
        "wording": "Chad is governed from",
        "wording_before": "Lagos",
        "wording_after": "Lagos",
        "reply": "It is N'Djamena.",
        "reply_before": "It is Lagos.",
        "chat_success": None,
        "moved": [{"prompt": "The capital of Mali is", "base": "Bamako", "now": "Chad"}],
    }
    print_answers(request, score)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip()[-1] for line in lines[2:]] == ["✓", "✗", ".", "d"]
