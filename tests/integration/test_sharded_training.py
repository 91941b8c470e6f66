"""Training against shards is training against the whole base: figures and gradients, for two ranks and for three."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from editors.data.datasets import edit_lines
from editors.mend.checkpoint import TrainedEditor
from editors.training.__main__ import main as train
from editors.training.run_folder import TrainingFolder
from pipeline.domain.formats.refusals import INTERRUPTED
from tests.support.paths import ROOT
from tests.support.processes import environment_of, listening
from tests.support.ranks_of_tests import run_ranks
from tests.support.sharded_training_program import with_company
from tests.support.tiny_families import ARCHITECTURES, tiny_module
from tests.support.tiny_lineage import TEXT, edits
from tests.support.tiny_models import save_tiny_llama
from tests.support.training_processes import start_training
from tests.support.waiting import eventually, patience

PROGRAM, RANK = "tests.support.sharded_training_program", "tests.support.program_rank"
OPTIONS = {
    **{"data": "edits.jsonl", "model": "model", "out": "run", "text": "text.txt"},
    **{"subject-param": "model.layers.1.mlp.down_proj.weight", "inner-param": "model.layers.1.mlp.down_proj.weight"},
    **{"rank": 4, "edits-per-step": 2, "steps": 6, "validate-every": 3, "save-every": 1, "held-out": 1},
    **{"prior-strength": 1.0, "seed": 3, "frames-per-pass": 0},
}
COMMAND = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]


# Number of ranks -> architectures and solvers; the ranks of one number are started once.
RUNS = {2: [("llama", "recursive"), ("mistral", "framed"), ("gpt2", "sum"), ("bert", "sum")], 3: [("t5", "recursive")]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Sequence[dict[str, Any]]]]:
    """Return what each of some ranks found, by architecture."""

    @cache
    def on_ranks(num_ranks: int) -> dict[str, Sequence[dict[str, Any]]]:
        runs = []
        for name, kind in RUNS[num_ranks]:
            folder = tmp_path_factory.mktemp(name)
            module, tokenizer = tiny_module(name)
            module.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            runs.append((str(folder), ARCHITECTURES[name].task, kind))
        by_rank = run_ranks(PROGRAM, json.dumps(runs), num_ranks=num_ranks)
        return dict(zip((name for name, _ in RUNS[num_ranks]), zip(*by_rank, strict=True), strict=True))

    return on_ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_ranks"), [(name, num_ranks) for num_ranks, runs in RUNS.items() for name, _ in runs]
)
def test_figures_and_gradients_are_those_of_the_unsharded_run(
    found: Callable[[int], dict[str, Sequence[dict[str, Any]]]], name: str, num_ranks: int
) -> None:
    ranks = found(num_ranks)[name]
    assert len(ranks) == num_ranks
    for rank in ranks:
        assert rank["has_gradients"]
        assert rank["figures"] <= 1e-5
        assert rank["validation"] <= 1e-5
        assert rank["gradients"] <= 1e-5
        assert all(own == rank["ranks"][0] for own in rank["ranks"]), "ranks would take different steps"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a tiny base, edits and text."""
    save_tiny_llama(tmp_path / "model", mlp=24)
    (tmp_path / "edits.jsonl").write_bytes(edit_lines([with_company(edit) for edit in edits(5)]))
    (tmp_path / "text.txt").write_text(TEXT.replace(" . ", "\n"), encoding="utf-8")
    return tmp_path


def started(folder: Path, *more: str) -> subprocess.Popen[str]:
    """The command, and what else is told it."""
    return start_training(folder, *COMMAND, *more)


def steps_of(run: Path) -> list[dict[str, Any]]:
    """What is logged, without times."""
    return [{name: line[name] for name in line if name != "seconds"} for line in TrainingFolder(run).logged()]


@pytest.mark.slow
def test_the_command_trains_on_two_ranks_and_goes_on_after_a_kill(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["training", *COMMAND, "--ranks", "2"]
    assert run_ranks(RANK, json.dumps({"folder": str(files), "words": words}), num_ranks=2) == [0, 0]
    best, expected = TrainedEditor.load(files / "run" / "best"), steps_of(files / "run")
    (files / "run").rename(files / "whole")

    killed = started(files, "--ranks", "2")
    eventually((files / "run" / "state.safetensors").is_file, "the state of a run")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=patience())
    resumed = started(files, "--ranks", "2", "--resume")
    out, err = resumed.communicate(timeout=patience())
    assert resumed.returncode == 0, err
    assert steps_of(files / "run") == expected
    assert f"digest      {best.digest}" in out
    again = TrainedEditor.load(files / "run" / "best")
    assert again.digest == best.digest
    assert {one.card.command for one in (best, again)} == {again.card.command}
    assert best.card.command.startswith("corrigenda train --ranks 2 --data edits.jsonl")

    monkeypatch.chdir(files)
    assert train([*COMMAND, "--resume"]) != 0
    assert "expected the run in run to be resumed with its own settings.ranks, 2, got None" in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_that_train_listen_on_the_loopback_interface_only_hold_no_secret_and_end_when_interrupted(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRIGENDA_REDIS_URL", "redis://:hunter2@r/0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    # With the usual patience the first run could be over before the second has begun.
    words = (*COMMAND, "--ranks", "2", "--steps", "100000", "--patience", "100000")
    as_a_user = start_training(files, *words)
    by_itself = subprocess.Popen(
        [sys.executable, "-m", "workers.on_ranks", "training", *words, "--out", "other"],
        cwd=files,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for run in ("run", "other"):
            eventually((files / run / "state.safetensors").is_file, "the state of a run")
        ranks = ranks_in(files)
        assert len(ranks) == 4
        for pid in ranks:
            addresses = listening(pid)
            assert addresses
            assert all(address.is_loopback for address in addresses), addresses
            assert "hunter2" not in "".join(environment_of(pid).values())
        os.killpg(as_a_user.pid, signal.SIGINT)
        out, err = as_a_user.communicate(timeout=patience())
        assert as_a_user.returncode == INTERRUPTED
        assert (out, err.count("--resume goes on"), err.count("Traceback")) == ("", 1, 0)
    finally:
        by_itself.kill()
        if as_a_user.poll() is None:
            os.killpg(as_a_user.pid, signal.SIGKILL)
            as_a_user.communicate(timeout=patience())
        by_itself.wait(timeout=patience())
    eventually(lambda: not ranks_in(files), "the end of all ranks")


def ranks_in(folder: Path) -> set[int]:
    """Processes of training ranks that work in a folder; the launcher works there too, but is no rank."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_rank = b"RANK=" in (entry / "environ").read_bytes()
            if is_rank and (entry / "cwd").resolve() == folder.resolve():
                found.add(int(entry.name))
    return found


@pytest.mark.slow
def test_what_is_wrong_is_said_once(files: Path) -> None:
    wrong = started(files, "--ranks", "2", "--rate-lr", "0.1", "--solver", "sum", "--boost", "2")
    out, err = wrong.communicate(timeout=patience())
    assert wrong.returncode != 0
    assert (out, err.count("expected")) == ("", 1)
    assert "got --boost" in err
    (files / "edits.jsonl").write_bytes(edit_lines(edits(5)))
    useless = started(files, "--ranks", "2")
    out, err = useless.communicate(timeout=patience())
    assert useless.returncode != 0
    assert out == ""
    assert err.count("expected edits with rephrases to train and to validate on, got 0") == 1
    assert "Traceback" not in err
