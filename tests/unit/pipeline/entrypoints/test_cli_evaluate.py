"""The command `evaluate`: what it passes on, and what it refuses before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from editors.evaluation.arguments import parser
from pipeline.entrypoints.cli import evaluate as cli_evaluate
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    path.write_text('{"prompt": "A is", "target_new": "b"}\n')
    return path


class Started:
    """Takes the place of the process that measures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, returncode: int = 0) -> None:
        self.arguments: list[str] = []
        self._returncode = returncode
        monkeypatch.setattr(cli_evaluate.subprocess, "run", self)

    def __call__(self, arguments: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        assert arguments[:3] == [sys.executable, "-m", "editors.evaluation"]
        self.arguments = arguments[3:]
        return subprocess.CompletedProcess(arguments, self._returncode)


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_every_option_is_one_that_the_evaluation_knows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    line = (
        f"--data {data} --edits 7 --protocol single --batch 3 --checkpoint-every 0 --sample 5 --free-sample 4 "
        f"--rephrase-rows 2 --solver sum,ft --editor ft={tmp_path} --editor {tmp_path} --seed 9 --task causal "
        f"--model {tmp_path} --out {tmp_path / 'out'} --json {tmp_path / 'x.json'} "
        "--prior-strength 7.5 --ft-bound 0.1 --rephrases 2"
    )
    assert evaluate(*line.split()).exit_code == 0
    given = parser().parse_args(started.arguments)
    assert (given.data, given.edits, given.protocol, given.batch) == (data, 7, "single", 3)
    assert (given.checkpoint_every, given.sample, given.free_sample, given.rephrase_rows) == (0, 5, 4, 2)
    assert given.editor == [("ft", tmp_path), (None, tmp_path)]
    assert (given.solver, given.seed, given.task) == (("sum", "ft"), 9, "causal")
    assert (given.model, given.out, given.json) == (tmp_path, tmp_path / "out", str(tmp_path / "x.json"))
    assert (given.prior_strength, given.ft_bound, given.rephrases) == (7.5, 0.1, 2)


def test_what_is_left_out_is_left_to_the_evaluation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    assert evaluate("--data", data, "--edits", 2, "--model", tmp_path).exit_code == 0
    given = parser().parse_args(started.arguments)
    assert (given.solver, given.editor, given.checkpoint_every, given.out, given.json) == (None, [], None, None, "-")


def test_with_a_folder_nothing_is_printed_unless_it_is_asked_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    assert evaluate("--data", data, "--edits", 2, "--model", tmp_path, "--out", tmp_path).exit_code == 0
    assert "--json" not in started.arguments


@pytest.mark.parametrize("wrong", ["--data /nope", "--editor /nope", "--json /nope/x.json", "--json /"])
def test_what_cannot_be_read_or_written_is_refused_before_anything_starts(
    wrong: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    result = evaluate("--data", data, "--edits", 2, "--model", tmp_path, *wrong.split())
    assert result.exit_code == ExitCode.usage
    assert len(result.stderr.strip().splitlines()) == 1
    assert started.arguments == []


@pytest.mark.parametrize(
    ("returncode", "status"), [(1, ExitCode.usage), (2, ExitCode.usage), (-9, ExitCode.misconfigured)]
)
def test_a_failed_evaluation_is_a_failed_command(
    returncode: int, status: ExitCode, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Started(monkeypatch, returncode)
    assert evaluate("--data", data, "--edits", 2, "--model", tmp_path).exit_code == status
