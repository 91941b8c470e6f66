"""The script for an accelerator, on a CPU with a tiny base and a handful of edits: every stage but the large bases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from editors.evaluation.__main__ import main as evaluate
from editors.mend.checkpoint import TrainedEditor
from editors.training.__main__ import main as train
from tests.benchmarks import gpu_figures, train_editor
from tests.benchmarks.gpu_figures import Outcome, Stage, run_together
from tests.support.taught import FACTS, sentences
from tests.support.taught_editors import save_taught_edits

WEIGHT = "model.layers.0.mlp.down_proj.weight"
QUICK = (
    *("--subject-param", WEIGHT, "--inner-param", WEIGHT, "--rank", "4", "--num-guards", "0", "--steps", "2"),
    *("--validate-every", "2", "--save-every", "2", "--stream-steps", "2", "--edits-per-step", "3", "--held-out", "3"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with files of the names that the script reads."""
    save_taught_edits(tmp_path / train_editor.TRAIN[0], task="causal")
    lines = (tmp_path / train_editor.TRAIN[0]).read_bytes().splitlines(keepends=True)
    for name in (train_editor.VALIDATION, "real_dev.jsonl", "zsre_val.jsonl", "counterfact_pararel_stream.jsonl"):
        (tmp_path / name).write_bytes(b"".join(lines[-3:]))
    for name in (train_editor.TEXT, train_editor.OTHER_TEXT):
        (tmp_path / name).write_text("\n".join(sentences(FACTS[:8])), encoding="utf-8")
    return tmp_path


def in_this_process(stages: Sequence[Stage]) -> dict[str, Outcome]:
    """Run stages one by one without starting Python for each."""
    programs = {"editors.training": train, "editors.evaluation": evaluate}
    found = {}
    for stage in stages:
        assert stage.command[0] == "-m"
        words = [*stage.command[2:], *(["--free-sample", "0"] if "evaluation" in stage.command[1] else [])]
        status = programs[stage.command[1]](words)
        result = stage.result
        figures = json.loads(result.read_text()) if result is not None and result.is_file() else None
        found[stage.name] = Outcome(status=status, seconds=0.0, said="", figures=figures)
    return found


@pytest.mark.slow
def test_all_figures_come_from_one_command_and_lie_in_one_file(
    data: Path, taught: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_figures, "run_together", in_this_process)
    command = ["--data", str(data), "--out", str(data / "out"), "--model", str(taught("llama")), "--device", "cpu"]
    assert gpu_figures.main([*command, "--tiny", "--", *QUICK]) == 0
    found = json.loads((data / "out" / "figures.json").read_text())
    names = {f"{name}-{how}" for name in ("real_dev", "zsre", "stream") for how in ("trained", "untrained")}
    assert found.keys() == {"training", *names}
    assert found["training"]["figures"]["edits_per_second"] > 0
    trained = found["stream-trained"]["figures"]["solvers"]["recursive"]
    assert trained["settings"]["transform"] == TrainedEditor.load(data / "out" / "run" / "best").digest
    assert "edit_success" in trained
    assert (data / train_editor.PREPARED).is_file()


def test_a_stage_that_fails_or_is_late_leaves_the_others_alone() -> None:
    late, failing, fine = (
        Stage(name=name, command=("-c", code), seconds=seconds)
        for name, code, seconds in (
            ("late", "import time; time.sleep(600)", 0.1),
            ("failing", "raise SystemExit('no such device')", 60.0),
            ("fine", "print('done')", 60.0),
        )
    )
    found = run_together([late, failing, fine])
    assert [found[name].status for name in ("late", "failing", "fine")] == [None, 1, 0]
    assert "no such device" in found["failing"].said
    assert found["fine"].said == "done\n"
