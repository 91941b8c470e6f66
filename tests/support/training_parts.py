"""A small thing to train: a transform whose shifts have to become given ones. Needs no model and takes milliseconds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from editors.mend.checkpoint import CardStage, EditorCard, TrainedEditor
from editors.mend.transform import MendTransform
from editors.training.loop import LoopSettings, TrainingRun
from editors.training.objective import Deck, Losses, Objective
from editors.training.run_folder import TrainingFolder
from editors.training.state import Progress
from pipeline.domain.errors import EditorFailed

NAME, WIDTH, NUM_TOKENS = "block.0.weight", 5, 24
RUN = {"settings": {"lr": 0.02}, "base_digest": "b" * 64, "data": "d" * 64, "command": "train"}
SETTINGS = LoopSettings(num_steps=6, validate_every=3, save_every=2, patience=9)


class ToyObjective:
    """Shifts of fixed pairs are pulled to fixed targets; a carried tensor makes every step depend on all before it."""

    def __init__(self, *, broken_steps: tuple[int, ...] = (), failing_steps: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(3)
        self.u, self.delta, self.wanted = torch.randn(3, NUM_TOKENS, WIDTH, generator=generator)
        self.transform = MendTransform({NAME: (WIDTH, WIDTH)}, rank=2)
        self.carried = torch.zeros(())
        self.deck = Deck(NUM_TOKENS, batch=10, seed=1)
        self.broken_steps, self.failing_steps = broken_steps, failing_steps
        self.scores: list[float] = []

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.transform.networks.parameters()), "lr": 0.02},
            {"params": [self.transform.log_rate_M], "lr": 0.05},
        ]

    def begin(self) -> None:
        self.transform.observe(NAME, self.u, self.delta)
        self.transform.initial_rates({NAME: self.u}, {NAME: self.delta}, step=0.5)

    def episode(self, step: int, rng: random.Random) -> Losses:
        if step in self.failing_steps:
            raise EditorFailed("on purpose")
        places = self.deck.places(step)
        self.transform.observe(NAME, self.u[places], self.delta[places])
        noise = torch.randn(WIDTH) * rng.random() * 0.1
        shift = self.transform.shift(NAME, self.u[places], self.delta[places])
        loss = (shift - self.wanted[places] + noise + self.carried * 0.01).square().mean()
        if step in self.broken_steps:
            loss = loss * float("nan")
        self.carried = self.carried + shift.detach().mean()
        return Losses(total=loss, parts={"loss": float(loss.detach())}, num_edits=len(places))

    def validate(self) -> dict[str, float]:
        with torch.no_grad():
            loss = float((self.transform.shift(NAME, self.u, self.delta) - self.wanted).square().mean())
        return {"score": self.scores.pop(0) if self.scores else -loss, "loss": loss, "odd": float("nan")}

    def state(self) -> dict[str, Tensor]:
        return {**self.transform.state_dict(), "carried": self.carried}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        state = dict(state)
        self.carried = state.pop("carried")
        self.transform.load_state_dict(state)

    def editor(self, figures: Mapping[str, float], num_steps: int) -> TrainedEditor:
        card = EditorCard(
            base_digest="b" * 64,
            task="causal",
            solver="sum",
            stages=(CardStage(inner_params=(NAME,), key_tokens="all"),),
            shapes=((NAME, WIDTH, WIDTH),),
            rank=2,
            statistics="shape",
            stop_probability=1.0,
            settings={},
            training={},
            data=(),
            metrics=dict(figures),
            command="train",
            num_steps=num_steps,
            versions={},
            licence="",
        )
        return TrainedEditor(card=card, transform=self.transform)


class Silent:
    """Remembers what a screen would show."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.validations: list[tuple[int, bool]] = []

    def stepped(self, step: int, num_edits: int, figures: Mapping[str, float]) -> None:
        self.steps.append(step)

    def validated(self, step: int, figures: Mapping[str, float], *, is_best: bool) -> None:
        self.validations.append((step, is_best))


def train(
    path: Path,
    *,
    resume: bool = False,
    objective: ToyObjective | None = None,
    settings: LoopSettings = SETTINGS,
    run: Mapping[str, Any] = RUN,
    watcher: Silent | None = None,
) -> Progress:
    """A run in a folder, new or gone on with."""
    objective = objective or ToyObjective()
    state = None
    with TrainingFolder(path) as folder:
        if resume:
            state = folder.open_again(run)
        else:
            folder.open_new(run)
        trainer = TrainingRun(
            cast(Objective, objective), settings, folder, make_editor=objective.editor, watcher=watcher or Silent()
        )
        return trainer.run(state)
