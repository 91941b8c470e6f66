"""Measuring where ranks hold the base together is measuring the whole base: the same edits and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editors.evaluation.__main__ import main as evaluate
from tests.support.ledger_parts import FACTS, prior_lines
from tests.support.ranks_of_tests import run_ranks
from tests.support.tiny_models import TEXT, save_tiny_llama

RANK = "tests.support.program_rank"
DIFFERING = ("cost",)
"""What differs with memory and times."""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a tiny base, edits with subjects, one of which supersedes another, and text."""
    save_tiny_llama(tmp_path / "model", hidden=32, mlp=32)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "prior.txt").write_text("\n".join(prior_lines()))
    edits = [
        {
            **{"prompt": prompt, "target_new": target, "subject": prompt.split()[-2], "rephrases": ["what is"]},
            "locality": [{"prompt": f"where is {place}"}],
        }
        for place, (prompt, target) in enumerate(FACTS)
    ]
    edits.append({"prompt": FACTS[0][0], "target_new": "Rome"})
    (tmp_path / "edits.jsonl").write_text("\n".join(json.dumps(edit) for edit in edits))
    return tmp_path


def words(out: str, *more: str) -> list[str]:
    files = {"--data": "edits.jsonl", "--model": "model", "--text": "text.txt", "--prior-text": "prior.txt"}
    return [*(word for pair in files.items() for word in pair), "--edits", "6", "--batch", "3", "--out", out, *more]


def require_alike(found: Any, expected: Any, where: str = "") -> None:
    """Compare figures: numbers nearly, everything else exactly."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected.keys() - set(DIFFERING):
            require_alike(found[name], expected[name], f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            require_alike(one, other, f"{where}/{place}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), where
    else:
        assert found == expected, where


@pytest.mark.slow
def test_two_ranks_make_and_measure_what_one_process_does(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    assert evaluate(words("whole")) == 0
    given = {"folder": str(files), "words": ["evaluation", *words("shared"), "--ranks", "2"]}
    assert run_ranks(RANK, json.dumps(given), num_ranks=2) == [0, 0]
    whole, shared = (json.loads((files / out / "figures.json").read_text()) for out in ("whole", "shared"))
    assert shared["is_complete"]
    assert whole["solvers"]["recursive"]["editing"]["batches"] == 2
    require_alike(shared, whole)
    assert (files / "shared" / "curves.png").is_file()


@pytest.mark.slow
def test_what_ranks_cannot_do_is_said_before_anything_is_loaded(files: Path) -> None:
    for more in (("--solver", "recursive,ft"), ("--fold",), ("--device", "cuda:0")):
        given = {"folder": str(files), "words": ["evaluation", *words("shared", *more), "--ranks", "2"]}
        assert run_ranks(RANK, json.dumps(given), num_ranks=2) == [1, 1]
        assert not (files / "shared").exists()
