"""What a training run shows while it runs: a progress bar, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 10.0
"""Least time between two lines about steps, where there is no terminal."""
SMOOTHING = 0.1
"""Weight of the newest step in the running means that are shown."""


class TrainingScreen:
    """A context manager that shows live figures of the steps and a line for each validation; a `loop.Watcher`.

    Args:
        num_steps: most steps of the run.
        start: steps that a resumed run has made before.
        console: where to show them; standard error by default.
    """

    def __init__(self, *, num_steps: int, start: int = 0, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._num_steps, self._start = num_steps, start
        self._began = self._spoke = time.monotonic()
        self._edits = 0
        self._figures: dict[str, float] = {}
        self._bar = _bar(self._console) if self._console.is_terminal else None
        self._task = self._bar.add_task("", total=num_steps, completed=start) if self._bar else None

    def __enter__(self) -> TrainingScreen:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def stepped(self, step: int, num_edits: int, figures: Mapping[str, float]) -> None:
        """Show a step with running means of its figures."""
        self._edits += num_edits
        for name, value in figures.items():
            self._figures[name] = (1 - SMOOTHING) * self._figures.get(name, value) + SMOOTHING * value
        now = time.monotonic()
        shown = f"{_shown(self._figures)}  {self._edits / max(now - self._began, 1e-9):.1f} edits/s"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, description=shown)
        elif now - self._spoke >= SECONDS_BETWEEN_LINES or step == self._num_steps:
            self._spoke = now
            self.say(f"{step}/{self._num_steps}  {shown}")

    def validated(self, step: int, figures: Mapping[str, float], *, is_best: bool) -> None:
        """Show the figures of a validation in a line that stays."""
        self.say(f"{step}/{self._num_steps}  validation  {_shown(figures)}{'  best' if is_best else ''}")

    def say(self, line: str) -> None:
        """Show a line of its own, which stays above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bar(console: Console) -> Progress:
    # Figures that the terminal has no room for go on below; kept on one line they would push the steps out.
    figures = TextColumn("{task.description}", table_column=Column())
    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeRemainingColumn(), figures)
    return Progress(*columns, console=console, refresh_per_second=4)


def _shown(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
