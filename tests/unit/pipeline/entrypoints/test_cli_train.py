"""The command `train`: what it passes on, and what it refuses before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from editors.training.arguments import loop_settings, objective_settings, parser
from editors.training.setup import without_folders
from pipeline.entrypoints.cli import train as cli_train
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import INTERRUPTED, ExitCode


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    path.write_text('{"prompt": "A is", "target_new": "b"}\n')
    return path


class Started:
    """Takes the place of the process that trains."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, returncode: int = 0) -> None:
        self.arguments: list[str] = []
        self._returncode = returncode
        monkeypatch.setattr(cli_train.subprocess, "run", self)

    def __call__(self, arguments: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        assert arguments[:3] == [sys.executable, "-m", "editors.training"]
        self.arguments = arguments[3:]
        return subprocess.CompletedProcess(arguments, self._returncode)


def train(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_every_option_is_one_that_the_training_knows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    line = (
        f"--data {data} --model {tmp_path} --out {tmp_path / 'run'} --resume --validation {data} --text {data} "
        "--task causal --solver recursive --rank 8 --steps 7 --edits-per-step 6 --lr 0.1 --patience 3 --limit 5 "
        "--seed 9 --threads 2 --boost 2.5 --subject-param a.weight --inner-param a.weight --inner-param b.weight"
    )
    assert train(*line.split()).exit_code == 0
    given = parser().parse_args(started.arguments)
    assert (given.data, given.model, given.out, given.resume) == (data, tmp_path, tmp_path / "run", True)
    assert (given.validation, given.text, given.task, given.rank, given.limit) == (data, data, "causal", 8, 5)
    assert (given.inner_params, given.subject_params, given.threads) == (["a.weight", "b.weight"], ["a.weight"], 2)
    settings, loop = objective_settings(given), loop_settings(given)
    assert (settings.batch, settings.network_lr, settings.seed, getattr(settings, "boost", None)) == (6, 0.1, 9, 2.5)
    assert (loop.num_steps, loop.patience, loop.seed) == (7, 3, 9)


def test_what_is_left_out_is_left_to_the_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    assert train("--data", data, "--model", tmp_path, "--out", tmp_path / "run").exit_code == 0
    given = parser().parse_args(started.arguments)
    assert (given.resume, given.validation, given.task, given.steps, given.batch) == (False, None, None, None, None)


@pytest.mark.parametrize("wrong", ["--data /nope", "--validation /nope", "--text /nope"])
def test_what_cannot_be_read_is_refused_before_anything_starts(
    wrong: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    result = train("--data", data, "--model", tmp_path, "--out", tmp_path / "run", *wrong.split())
    assert result.exit_code == ExitCode.usage
    assert len(result.stderr.strip().splitlines()) == 1
    assert started.arguments == []


@pytest.mark.parametrize(
    ("returncode", "status"),
    [(1, ExitCode.usage), (2, ExitCode.usage), (-9, ExitCode.misconfigured), (130, INTERRUPTED)],
)
def test_a_failed_training_is_a_failed_command(
    returncode: int, status: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Started(monkeypatch, returncode)
    assert train("--data", data, "--model", tmp_path, "--out", tmp_path / "run").exit_code == status


def test_a_card_names_files_and_not_where_they_lay() -> None:
    command = "corrigenda train --data /home/ada/edits.jsonl --text here/text.txt --licence 'MIT; CC BY-SA 3.0'"
    expected = "corrigenda train --data edits.jsonl --text here/text.txt --licence 'MIT; CC BY-SA 3.0'"
    assert without_folders(command) == expected
