"""Shows an evaluation to a person: progress while it runs, a table at its end.

Everything goes to standard error, so that figures in JSON have standard output to themselves: a bar on a terminal,
plain lines elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from editors.evaluation.metrics import value_at
from pipeline.domain.rank_api import Step, told_to

ROWS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("edit success", ("edit_success",), ".3f"),
    ("  free, raw", ("greedy", "edit_success"), ".3f"),
    ("  free, in the chat template", ("chat", "edit_success"), ".3f"),
    ("  token fraction", ("token_fraction",), ".3f"),
    ("  P(new) > P(true)", ("prefers_new",), ".3f"),
    ("generalization", ("generalization",), ".3f"),
    ("  free, raw", ("greedy", "generalization"), ".3f"),
    ("  P(new) > P(true)", ("generalization_prefers_new",), ".3f"),
    ("  same text left of the subject", ("generalization_same_context",), ".3f"),
    ("  other text left of it", ("generalization_other_context",), ".3f"),
    ("  subject not named", ("generalization_unnamed",), ".3f"),
    ("  of rephrases that were edit rows", ("row_rephrases",), ".3f"),
    ("questions in a chat", ("chat_success",), ".3f"),
    ("locality, unchanged", ("locality_unchanged",), ".3f"),
    ("  KL from the base, nats", ("locality_kl",), ".3f"),
    ("  P(true) > P(new)", ("neighbourhood",), ".3f"),
    ("portability", ("portability",), ".3f"),
    ("retention of the first 10 %", ("retention_first_tenth",), ".3f"),
    ("  of the first batch", ("retention_first_batch",), ".3f"),
    ("score, harmonic mean", ("score",), ".3f"),
    ("drawdown", ("drawdown",), "+.2%"),
    ("fluency, bits", ("fluency",), ".2f"),
    ("seconds an edit", ("cost", "seconds_per_edit"), ".3f"),
    ("memory above the model", ("cost", "peak_share_of_model"), ".1%"),
    ("a batch's delta, of the model", ("editing", "delta_share_of_model"), ".2%"),
    ("bytes an edit", ("editing", "bytes_per_edit"), ",.0f"),
    ("batches that failed", ("editing", "failed_batches"), "d"),
)
"""What the table shows: label, where it is in a solver's figures, format."""
SHOWN = {
    "edit": ("edit_success",),
    "free": ("greedy", "edit_success"),
    "other contexts": ("generalization_other_context",),
    "chat": ("chat_success",),
    "locality": ("locality_unchanged",),
    "first 10 %": ("retention_first_tenth",),
}
"""What a line of progress shows of a checkpoint."""


SILENCE = 15.0
"""Seconds after which a step is worth a line where there is no bar."""


class Reporter:
    """Shows how far an evaluation is.

    Args:
        console: where it is shown; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None

    def say(self, line: str) -> None:
        """Show a sentence, above the bar if there is one."""
        (self._bar.console if self._bar else self.console).print(Text(line), soft_wrap=True)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show what takes a while: a sign that moves on a terminal, a line elsewhere."""
        if not self.console.is_terminal:
            self.say(what)
            yield
            return
        with self.console.status(Text(what)):
            yield
        self.say(what)

    @contextmanager
    def following(self, solver: str, total: int) -> Iterator[SolverProgress]:
        """Show the progress of one solver over its `total` edits."""
        if not self.console.is_terminal:
            shown = SolverProgress(self, solver, total)
            with told_to(shown.tell):
                yield shown
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[what]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as bar:
            self._bar = bar
            try:
                shown = SolverProgress(self, solver, total, bar)
                with told_to(shown.tell):
                    yield shown
            finally:
                self._bar = None

    def table(self, solvers: Mapping[str, Mapping[str, Any]]) -> None:
        """Show figures at the end in a column each, without the rows of which nothing was measured."""
        table = Table("", *solvers, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for label, path, form in ROWS:
            values = [value_at(figures, path) for figures in solvers.values()]
            if any(value is not None for value in values):
                table.add_row(Text(label), *("-" if value is None else format(value, form) for value in values))
        self.console.print(table)


class SolverProgress:
    """Shows what happens to one solver; an `OnProgress`."""

    def __init__(self, reporter: Reporter, solver: str, total: int, bar: Progress | None = None) -> None:
        self._reporter, self._solver, self._total, self._bar = reporter, solver, total, bar
        self._task = bar.add_task(solver, total=total, what="") if bar else None
        self._done, self._said = 0, time.monotonic()

    def tell(self, step: Step) -> None:
        """Show a step of what happens to a batch: in the bar, and elsewhere as a line after some seconds of silence."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, what=step.sentence())
        elif time.monotonic() - self._said >= SILENCE:
            self._say(f"{self._solver}: {self._done}/{self._total} edited, {step.sentence()}")

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self._reporter.say(line)

    def __call__(self, what: str, done: int, figures: Mapping[str, Any] | None) -> None:
        """Show what was done after so many edits, and some figures if there are any."""
        self._done = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, what=what)
        if self._bar is None or figures is not None:
            shown = {name: value_at(figures, path) for name, path in SHOWN.items()} if figures else {}
            words = "  ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
            self._say(f"{self._solver}: {done}/{self._total} {what}  {words}".rstrip())
