"""`corrigenda train` from end to end on a small model that was taught facts: real processes, real files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editors.evaluation.__main__ import main as evaluate
from editors.mend.checkpoint import TrainedEditor
from editors.methods.select import learnt_settings
from editors.training.__main__ import main as train
from editors.training.run_folder import TrainingFolder
from editors.training.state import TrainingState
from tests.support.taught import FACTS, sentences
from tests.support.taught_editors import save_taught_edits
from tests.support.training_processes import start_training
from tests.support.waiting import eventually, patience

STEPS = 24
OPTIONS = {
    **{"data": "edits.jsonl", "model": "model", "out": "run", "text": "text.txt", "threads": 1},
    **{"rank": 16, "edits-per-step": 8, "lr": 1e-2, "rate-lr": 5e-2, "boost": 10, "first-step": 0.4},
    **{"steps": STEPS, "validate-every": 12, "save-every": 5, "held-out": 6},
    **{"prior-strength": 1000, "step": 0.3, "num-passes": 24, "frames-per-pass": 0},
}
COMMAND = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]


def lay_out(folder: Path, taught: Callable[[str], Path]) -> Path:
    """A folder with a model, edits and text, so that every run in it has the same command."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").symlink_to(taught("llama"))
    save_taught_edits(folder / "edits.jsonl", task="causal")
    (folder / "text.txt").write_text("\n".join(sentences(FACTS)), encoding="utf-8")
    return folder


@pytest.fixture
def files(tmp_path: Path, taught: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of this test."""
    monkeypatch.chdir(lay_out(tmp_path / "files", taught))
    return tmp_path / "files"


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, taught: Callable[[str], Path]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run that nothing stopped, and what it said."""
    folder = lay_out(tmp_path_factory.mktemp("whole"), taught)
    process = started(folder)
    out, err = process.communicate(timeout=patience())
    return folder, subprocess.CompletedProcess(COMMAND, process.returncode, out, err)


def started(folder: Path, *more: str) -> subprocess.Popen[str]:
    """The command, and what else is told it."""
    return start_training(folder, *COMMAND, *more)


def left_by(run: Path) -> dict[str, Any]:
    """Everything that has to be the same bits, by file; of the log all but the times."""
    kept = {path for path in run.rglob("*") if path.is_file() and path.suffix not in (".png", ".jsonl")}
    found: dict[str, Any] = {str(path.relative_to(run)): path.read_bytes() for path in kept}
    lines = TrainingFolder(run).logged()
    return found | {"log": [{key: value for key, value in line.items() if key != "seconds"} for line in lines]}


@pytest.mark.slow
def test_a_run_brings_the_loss_down_and_leaves_an_editor_that_can_be_measured(
    trained: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, done = trained
    assert done.returncode == 0, done.stderr
    run = folder / "run"
    checks = [line["validation"] for line in TrainingFolder(run).logged() if "validation" in line]
    assert checks[-1]["loss"] < checks[0]["loss"]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    best = TrainedEditor.load(run / "best")
    assert best.card.num_steps > 0
    assert best.card.metrics["score"] == max(check["score"] for check in checks)
    assert best.card.command.startswith("corrigenda train --data edits.jsonl")
    assert {item.use for item in best.card.data} == {"train", "text", "prior text 1"}
    assert "edits/s" in done.stderr
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (said["editor"], said["digest"]) == ("run/best", best.digest)
    assert f"score {best.card.metrics['score']:.4g}" in said["validation"]

    monkeypatch.chdir(folder)
    words = said["next"].split()
    assert words[:2] == ["corrigenda", "evaluate"]
    quick = ["--text", "text.txt", "--prior-text", "text.txt", "--batch", "6", "--json", "figures.json"]
    assert evaluate([*words[2:], *quick]) == 0
    figures = json.loads((folder / "figures.json").read_text())["solvers"]["recursive"]
    assert figures["settings"]["transform"] == best.digest
    assert figures["settings"]["prior_strength"] == 1000
    assert figures["edit_success"] >= 0.8


@pytest.mark.slow
def test_a_run_that_was_killed_is_resumed_to_the_bytes_of_one_that_was_not(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, taught: Callable[[str], Path]
) -> None:
    folder = lay_out(tmp_path / "killed", taught)
    victim = started(folder)
    log = folder / "run" / "log.jsonl"

    def is_under_way() -> bool:
        assert victim.poll() is None, "ended before it could be killed"
        return log.is_file() and log.read_text().count("\n") >= 9

    eventually(is_under_way, "nine lines of the log")
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert TrainingState.load(folder / "run" / "state.safetensors").progress.step < STEPS
    again = started(folder, "--resume")
    out, err = again.communicate(timeout=patience())
    assert again.returncode == 0, err
    assert out == trained[1].stdout
    assert left_by(folder / "run") == left_by(trained[0] / "run")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which a command line is refused, whatever was said before it."""
    capsys.readouterr()
    assert train(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "edits.jsonl, which is none"),
        ("", "at least one edit in edits.jsonl"),
        ('{"prompt": "Anna lives in"', "(line 1 of edits.jsonl)"),
        ('{"prompt": "Anna lives in"}', "edit in line 1 of edits.jsonl, got one with target_new"),
        ('{"prompt": "Anna lives in", "target_new": "Rome", "subject": "Anna"}', "edits with rephrases"),
        ('{"prompt": "Anna lives in", "target_new": "Rome", "rephrases": ["the home of Anna is in"]}', "rephrases"),
    ],
)
def test_edits_that_cannot_be_used_are_refused_and_leave_no_folder(
    content: str | None, complaint: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "edits.jsonl").unlink()
    if content is not None:
        (files / "edits.jsonl").write_text(content)
    assert complaint in refused(capsys, *COMMAND)
    assert not (files / "run").exists()


def test_edits_without_a_subject_cannot_train_for_subject_rows(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (files / "edits.jsonl").read_text().splitlines()]
    nameless = [json.dumps({name: value for name, value in line.items() if name != "subject"}) for line in lines]
    (files / "edits.jsonl").write_text("\n".join(nameless))
    assert "edits with a subject that stands in the prompt" in refused(capsys, *COMMAND)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--model", "."], "config.json"),
        (["--text", "nowhere.txt"], "a file for the text, got nowhere.txt"),
        (["--inner-param", "lm_head"], "lm_head"),
        (["--solver", "sum"], "constants of the solver sum, got --boost"),
        (["--resume"], "without run.json"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(
    arguments: list[str], complaint: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint in refused(capsys, *COMMAND, *arguments)
    assert not (files / "run").exists()


@pytest.mark.parametrize("option", ["--text", "--prior-text"])
def test_a_text_that_cannot_be_read_is_refused_before_the_base_is_loaded(
    option: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    assert train([*COMMAND, option, "bytes.txt"]) == 1
    [complaint] = capsys.readouterr().err.strip().splitlines()
    assert "UTF-8" in complaint
    assert "bytes.txt" in complaint


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_only_gone_on_with_as_it_is(
    trained: tuple[Path, subprocess.CompletedProcess[str]], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained[0] / "run", files / "run")
    before = left_by(files / "run")
    assert "--resume goes on with it" in refused(capsys, *COMMAND)
    assert "its own settings.rank, 16, got 8" in refused(capsys, *COMMAND, "--resume", "--rank", "8")
    (files / "edits.jsonl").write_text((files / "edits.jsonl").read_text().partition("\n")[2])
    assert "its own data.train" in refused(capsys, *COMMAND, "--resume")
    other = files / "other"
    shutil.copytree(files / "model", other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    assert "its own base_digest" in refused(capsys, *COMMAND, "--resume", "--model", str(other))
    assert left_by(files / "run") == before
    evaluation = ["--data", "edits.jsonl", "--edits", "2", "--json", "-", "--editor", "run/best"]
    assert evaluate([*evaluation, "--model", str(other)]) == 1
    assert "expected an editor for the base" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_said_so_and_the_run_goes_on_when_there_is_room(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*COMMAND, "--steps", "3", "--save-every", "1", "--validate-every", "3"]
    save, saved = TrainingState.save, []

    def without_room(state: TrainingState, path: Path) -> None:
        saved.append(state.progress.step)
        if saved[-1] == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(state, path)

    monkeypatch.setattr(TrainingState, "save", without_room)
    assert refused(capsys, *few) == (
        "expected room for the run in run, got: No space left on device; --resume goes on from the last state"
    )
    monkeypatch.undo()
    monkeypatch.chdir(files)
    assert train([*few, "--resume"]) == 0
    assert TrainedEditor.load(files / "run" / "last").card.num_steps == 3


FRAMED = {
    **{name: value for name, value in OPTIONS.items() if name not in ("boost", "num-passes", "frames-per-pass")},
    **{"steps": 12, "validate-every": 6, "save-every": 6, "stream-steps": 6, "num-guards": 0, "prior-strength": 100},
    **{"first-step": 3, "c-text": 5, "prepared": "prepared.gz"},
}
FRAMED_COMMAND = [word for name, value in FRAMED.items() for word in (f"--{name}", str(value))]


def success_of(*editor: str) -> float:
    """What six edits come to in three passes."""
    data = ["--data", "edits.jsonl", "--edits", "6", "--model", "model", "--json", "figures.json"]
    quick = ["--text", "text.txt", "--prior-text", "text.txt", "--free-sample", "0", "--task", "causal"]
    assert evaluate([*data, *quick, *editor]) == 0
    found = json.loads(Path("figures.json").read_text())["solvers"]["recursive"]
    assert (found["settings"]["num_passes"], found["settings"]["frames_per_pass"]) == (3, 2)
    return float(found["edit_success"])


@pytest.mark.slow
def test_an_editor_with_frames_is_trained_in_the_passes_of_the_product_and_goes_on_to_the_same_bytes(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--frames-per-pass 0" in refused(capsys, *FRAMED_COMMAND, "--boost", "2")
    assert "multiples of --stream-steps, 6, got 3" in refused(capsys, *FRAMED_COMMAND, "--save-every", "3")
    assert "one of float32, bfloat16; got 'int8'" in refused(capsys, *FRAMED_COMMAND, "--forward-dtype", "int8")
    assert "from 1 to --num-passes, 3, got 4" in refused(capsys, *FRAMED_COMMAND, "--trained-passes", "4")
    save = TrainingState.save

    def interrupted(state: TrainingState, path: Path) -> None:
        save(state, path)
        if state.progress.step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", interrupted)
    assert train(FRAMED_COMMAND) == 130
    monkeypatch.setattr(TrainingState, "save", save)
    assert train([*FRAMED_COMMAND, "--resume"]) == 0
    resumed = left_by(files / "run")
    shutil.rmtree(files / "run")
    assert train(FRAMED_COMMAND) == 0
    assert left_by(files / "run") == resumed
    checks = [line["validation"] for line in TrainingFolder(files / "run").logged() if "validation" in line]
    assert checks[-1]["loss"] < checks[0]["loss"]

    best = TrainedEditor.load(files / "run" / "best")
    learnt = learnt_settings(best)
    assert (learnt["frames_per_pass"], learnt["num_passes"], learnt["trained_passes"]) == (2, 3, 3)
    same = [word for name in ("prior-strength", "step") for word in (f"--{name}", str(FRAMED[name]))]
    untrained = success_of(*same, "--num-passes", "3", "--num-guards", "0")
    assert success_of("--editor", "run/best") > untrained
