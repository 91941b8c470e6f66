"""Training, whatever is trained: steps, the best checkpoint, skipped steps, and going on with the same bits."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from torch import Tensor

from editors.mend.checkpoint import TrainedEditor
from editors.training import loop
from editors.training.loop import MAX_SKIPPED_IN_A_ROW, LoopSettings, TrainingRun
from editors.training.objective import Deck, Objective
from editors.training.progress import TrainingScreen
from editors.training.run_folder import TrainingFolder
from editors.training.state import Progress, TrainingState, optimizer_tensors, restore_optimizer
from pipeline.domain.errors import EditorFailed, EngineFailed, IntegrityBroken, InvalidInput
from tests.support.training_parts import NAME, RUN, SETTINGS, Silent, ToyObjective, train

LONG = replace(SETTINGS, num_steps=60, validate_every=20, save_every=20)


def results(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that has to be the same bits, and its log without times."""
    names = [f"{name}/{file}" for name in ("best", "last") for file in ("editor.safetensors", "card.json")]
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in [*names, "state.safetensors"]}
    lines = TrainingFolder(folder).logged()
    return found | {"log": [{key: value for key, value in line.items() if key != "seconds"} for line in lines]}


class Stopped(BaseException):
    """As an interrupt does: nothing catches it on the way out."""


class StoppedAfter(ToyObjective):
    """Ends the run in the middle of a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.last = step

    def episode(self, step: int, rng: Any) -> Any:
        if step == self.last:
            raise Stopped
        return super().episode(step, rng)


def test_training_brings_the_loss_down_and_keeps_the_best(tmp_path: Path) -> None:
    progress = train(tmp_path, settings=LONG)
    lines = TrainingFolder(tmp_path).logged()
    checks = [line["validation"] for line in lines if "validation" in line]
    assert checks[-1]["loss"] < checks[0]["loss"] * 0.6
    assert progress.step == 60
    assert progress.num_edits == 600
    best = TrainedEditor.load(tmp_path / "best")
    assert best.card.num_steps == progress.best_step
    assert best.card.metrics["score"] == progress.best_score == max(check["score"] for check in checks)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 61))


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(step: int, tmp_path: Path) -> None:
    train(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tmp_path / "parts", objective=StoppedAfter(step))
    torch.manual_seed(12345)  # another process has other random numbers lying around
    watcher = Silent()
    train(tmp_path / "parts", resume=True, watcher=watcher)
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert watcher.steps[0] == {1: 1, 3: 4, 4: 5, 5: 5}[step]  # what is after the last state is made again


@pytest.mark.parametrize("is_same", [True, False])
def test_ranks_that_hold_different_editors_are_not_trained_on(is_same: bool, tmp_path: Path) -> None:
    class TwoRanks:
        rank, num_ranks = 0, 2

        def gathered(self, own: Any) -> list[Any]:
            return [own, own if is_same else "0" * 64]

    objective = ToyObjective()
    run = TrainingRun(
        cast(Objective, objective), SETTINGS, None, make_editor=objective.editor, watcher=None, comm=TwoRanks()
    )
    if is_same:
        assert run.run(None).step == SETTINGS.num_steps
    else:
        with pytest.raises(EngineFailed, match="same editor"):
            run.run(None)


def test_two_runs_give_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        train(tmp_path / name, settings=replace(SETTINGS, seed=seed))
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert results(tmp_path / "one")["state.safetensors"] != results(tmp_path / "other")["state.safetensors"]


def test_a_finished_run_that_is_resumed_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path)
    before, watcher = results(tmp_path), Silent()
    progress = train(tmp_path, resume=True, watcher=watcher)
    assert progress.step == 6
    assert watcher.steps == []
    assert results(tmp_path) == before


@pytest.mark.parametrize("kind", ["broken_steps", "failing_steps"])
def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(kind: str, tmp_path: Path) -> None:
    objective = ToyObjective(**{kind: (0, 1, 2)})
    progress = train(tmp_path, objective=objective, settings=replace(SETTINGS, num_steps=4))
    assert progress.num_skipped == 3
    lines = TrainingFolder(tmp_path).logged()
    assert [line.get("skipped", False) for line in lines if "edits" in line] == [True, True, True, False]
    assert all(("why" in line) == line.get("skipped", False) for line in lines), "no step is skipped in silence"
    assert all(bool(torch.isfinite(value).all()) for value in objective.state().values())
    untouched = ToyObjective(**{kind: tuple(range(9))})
    train(tmp_path / "none", objective=untouched, settings=SETTINGS)
    fresh = ToyObjective()
    fresh.begin()
    for name, value in fresh.transform.named_parameters():
        assert torch.equal(value, dict(untouched.transform.named_parameters())[name])


def test_a_run_of_nothing_but_skipped_steps_is_given_up(tmp_path: Path) -> None:
    objective = ToyObjective(broken_steps=tuple(range(1000)))
    with pytest.raises(EditorFailed, match=r"in a row up to .*; the last: .*finite"):
        train(tmp_path, objective=objective, settings=LoopSettings(num_steps=1000, validate_every=1000))
    assert len([line for line in TrainingFolder(tmp_path).logged() if "skipped" in line]) == MAX_SKIPPED_IN_A_ROW


def test_a_run_ends_when_validation_stops_improving_and_its_best_stays(tmp_path: Path) -> None:
    objective, watcher = ToyObjective(), Silent()
    objective.scores = [1.0, 3.0, 2.0, float("nan"), 9.0]
    settings = replace(SETTINGS, num_steps=100, validate_every=1, patience=2)
    progress = train(tmp_path, objective=objective, settings=settings, watcher=watcher)
    assert watcher.validations == [(0, True), (1, True), (2, False), (3, False)]
    assert (progress.best_step, progress.best_score, progress.num_stale) == (1, 3.0, 2)
    assert TrainedEditor.load(tmp_path / "best").card.num_steps == 1
    assert TrainedEditor.load(tmp_path / "last").card.num_steps == 3


def test_learning_rates_rise_and_fall_as_told() -> None:
    plain, shaped = LoopSettings(num_steps=100), LoopSettings(num_steps=100, warmup_steps=10, is_cosine=True)
    assert [plain.lr_factor(step) for step in (0, 50, 99)] == [1.0, 1.0, 1.0]
    assert shaped.lr_factor(0) == 0.1
    assert shaped.lr_factor(9) > 0.97
    assert shaped.lr_factor(50) == pytest.approx(0.525)
    assert 0.05 <= shaped.lr_factor(99) < 0.06


def test_the_rates_have_a_group_and_the_gradient_is_clipped(tmp_path: Path) -> None:
    objective = ToyObjective()
    objective.begin()
    before = objective.transform.log_rate_M.detach().clone()
    settings = replace(SETTINGS, num_steps=1, max_norm=1e-4)
    train(tmp_path, objective=objective, settings=settings)
    [line] = [line for line in TrainingFolder(tmp_path).logged() if "gradient_norm" in line]
    assert line["gradient_norm"] > 1e-4  # as it was before the clip
    moved = float((objective.transform.log_rate_M - before).detach().abs())
    assert moved == pytest.approx(0.05, rel=0.01)  # Adam's first step is the group's own learning rate
    largest = max(float(parameter.grad.norm()) for parameter in objective.transform.parameters())
    assert largest <= 1e-4


def test_an_optimizer_is_restored_to_the_bit() -> None:
    start = torch.randn(4)
    parameters = [[start.clone().requires_grad_(), torch.zeros(2, requires_grad=True)] for _ in range(2)]
    first, second = (torch.optim.Adam(pair, lr=0.1) for pair in parameters)
    for _ in range(3):
        parameters[0][0].square().sum().backward()
        first.step()
    with torch.no_grad():
        parameters[1][0].copy_(parameters[0][0])
    restore_optimizer(second, optimizer_tensors(first))
    parameters[1][0].grad = parameters[0][0].grad.clone()
    first.step()
    second.step()
    assert torch.equal(parameters[0][0], parameters[1][0])


@pytest.mark.parametrize(
    "changes",
    [
        {"0/exp_avg": None},
        {"0/step": None},
        {"0/exp_avg": torch.zeros(3)},
        {"2/step": torch.zeros(())},
        {"exp_avg": torch.zeros(4)},
    ],
)
def test_a_memory_that_is_not_that_of_the_parameters_is_refused(changes: dict[str, Tensor | None]) -> None:
    parameters = [torch.ones(4, requires_grad=True), torch.zeros(2, requires_grad=True)]
    optimizer = torch.optim.Adam(parameters)
    parameters[0].sum().backward()
    optimizer.step()
    changed = optimizer_tensors(optimizer) | changes
    with pytest.raises(IntegrityBroken, match=min(changes)):
        restore_optimizer(optimizer, {name: tensor for name, tensor in changed.items() if tensor is not None})


def test_every_place_is_dealt_once_a_round_and_a_step_always_gets_the_same() -> None:
    deck = Deck(7, batch=3, seed=0)
    dealt = [place for step in range(7) for place in deck.places(step)]
    rounds = [dealt[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(found) == list(range(7)) for found in rounds)
    assert rounds[0] != rounds[1]
    assert Deck(7, batch=3, seed=0).places(5) == dealt[15:18]
    assert Deck(7, batch=3, seed=1).places(0) != deck.places(0)


def test_a_new_run_takes_no_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    train(tmp_path / "empty")
    with pytest.raises(InvalidInput, match="--resume"):
        train(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(InvalidInput, match="new or empty folder"):
            train(taken)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"settings": {"lr": 0.1}}, r"settings\.lr, 0\.02, got 0\.1"),
        ({"base_digest": "c" * 64}, "base_digest"),
        ({"data": "e" * 64}, "data"),
    ],
)
def test_a_run_is_only_resumed_as_what_it_is(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(InvalidInput, match=complaint):
        train(tmp_path, resume=True, run={**RUN, **change})
    train(tmp_path, resume=True, run={**RUN, "command": "typed otherwise"})


def test_only_a_folder_of_a_run_is_resumed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InvalidInput, match=r"run\.json"):
            train(folder, resume=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.safetensors", b"half of it"),
        *(("run.json", content) for content in (b"", b"[]", b"5", b'{"settings":', b'"\xff"', b"\xff\xfe{\0}\0")),
        *(("log.jsonl", line) for line in (b"5\n", b'{"x": 5}\n', b'{"step": "5"}\n', b"null", b'{"step": 0}\n\xff\n')),
    ],
)  # fmt: skip
def test_a_damaged_file_of_a_run_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IntegrityBroken, match=re.escape(name)) as refused:
        train(tmp_path, resume=True)
    assert str(refused.value).startswith("expected ")


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = results(tmp_path / "run")
    half_written = tmp_path / "run" / ".state.safetensors.of-the-first"
    with TrainingFolder(tmp_path / "run") as first, TrainingFolder(tmp_path / "new") as new:
        first.open_again(RUN)
        new.open_new(RUN)
        (tmp_path / "new" / "run.json").unlink()
        half_written.touch()
        for name, is_resumed in (("run", True), ("new", False)):
            with pytest.raises(
                InvalidInput, match=rf"folder that no run writes to, got .*{name} \(pid {os.getpid()}\)"
            ):
                train(tmp_path / name, resume=is_resumed)
        assert half_written.exists()
    train(tmp_path / "run", resume=True)
    assert not half_written.exists()
    assert results(tmp_path / "run") == before
    train(tmp_path / "new")


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    train(tmp_path)
    picture = imread(tmp_path / "loss.png")
    lines = (picture[..., :3].std(axis=2) > 0.1).sum()
    assert lines > 50, "pixels with a colour: axes, labels and grid are grey"


@pytest.mark.parametrize(("seconds", "num_drawn"), [(0.0, 5), (3600.0, 1)])
def test_the_curve_is_drawn_at_the_end_and_before_only_where_the_last_one_is_old(
    seconds: float, num_drawn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CURVES", seconds)
    monkeypatch.setattr(TrainingFolder, "draw", lambda folder: drawn.append(len(folder.logged())))
    train(tmp_path, settings=LONG)
    assert len(drawn) == num_drawn, "four validations and the end, or the end alone"
    assert drawn[-1] == len(TrainingFolder(tmp_path).logged())


def test_figures_that_are_no_numbers_reach_no_file(tmp_path: Path) -> None:
    train(tmp_path)
    assert "odd" not in json.loads((tmp_path / "best" / "card.json").read_text())["metrics"]
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_screen_shows_figures_with_and_without_a_terminal(is_terminal: bool) -> None:
    text = io.StringIO()
    with TrainingScreen(num_steps=2, console=Console(file=text, force_terminal=is_terminal, width=150)) as screen:
        screen.validated(0, {"score": -1.25}, is_best=True)
        screen.stepped(1, 8, {"loss": 2.0})
        screen.stepped(2, 8, {"loss": 1.0})
    shown = text.getvalue()
    assert "validation  score -1.25  best" in shown
    assert "loss 1.9" in shown
    assert "edits/s" in shown
    assert ("\x1b[" in shown) == is_terminal


def test_a_narrow_terminal_shows_the_steps_and_every_figure() -> None:
    text = io.StringIO()
    with TrainingScreen(num_steps=40, console=Console(file=text, force_terminal=True, width=80)) as screen:
        figures = dict.fromkeys(("loss", "generalization", "rephrase_nll", "locality_unchanged", "locality_kl"), 1.0)
        screen.stepped(7, 8, figures)
    assert " 7/40" in text.getvalue()
    assert all(name in text.getvalue() for name in figures)


def test_a_state_is_read_back_as_it_was(tmp_path: Path) -> None:
    progress = Progress(step=3, num_edits=30).validated({"loss": 1.0}, -1.0)
    state = TrainingState(progress=progress, objective={NAME: torch.ones(2)}, optimizer={"0/step": torch.tensor(3.0)})
    state.save(tmp_path / "state.safetensors")
    read = TrainingState.load(tmp_path / "state.safetensors")
    assert read.progress == progress
    assert torch.equal(read.objective[NAME], torch.ones(2))
    assert torch.equal(read.optimizer["0/step"], torch.tensor(3.0))


def test_a_run_with_a_budget_of_time_ends_with_it_validated_and_with_its_learning_rate_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = itertools.count(step=10.0)  # ten seconds a look
    clock = SimpleNamespace(monotonic=lambda: next(looked), perf_counter=time.perf_counter)
    monkeypatch.setattr("editors.training.loop.time", clock)
    timed = LoopSettings(num_steps=1000, validate_every=500, save_every=500, minutes=1.0, is_cosine=True)
    watcher = Silent()
    done = train(tmp_path / "run", settings=timed, watcher=watcher)
    assert (done.step, done.seconds) == (6, 60.0)
    assert [step for step, _ in watcher.validations] == [0, 6]
    assert timed.lr_factor(5, 60.0) == pytest.approx(timed.lr_factor(1000))
    assert timed.lr_factor(5, 0.0) > 0.99
    again = train(tmp_path / "run", settings=timed, resume=True)
    assert again == done, "its time is used up"


def test_a_run_from_before_a_setting_came_in_goes_on_where_that_is_off(tmp_path: Path) -> None:
    train(tmp_path / "run")
    new = {**RUN, "settings": {"lr": 0.02, "minutes": 0.0, "new_relations": []}}
    train(tmp_path / "run", resume=True, run=new)
    with pytest.raises(InvalidInput, match=r"its own settings.minutes, None, got 1"):
        train(tmp_path / "run", resume=True, run={**RUN, "settings": {"lr": 0.02, "minutes": 1.0}})
