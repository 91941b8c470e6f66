"""A sign of life while a command waits: a moving line on a terminal, a line for each change where a program reads."""

from __future__ import annotations

import re
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.entrypoints.console import err, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


SECONDS = re.compile(r", \d+ s$")
"""How long something has taken, at the end of a line."""
QUIET_SECONDS = 30.0
"""After how long a line is written again, where a program reads, that says nothing new but the time."""


class SignOfLife:
    """Context manager; the line is gone once the command has its answer.

    Args:
        doing: what the command waits for at first.
        is_quiet: whether nobody looks, as with `--json`.
        on: where it is shown; standard error if None. What else is printed meanwhile has to go there too.
    """

    def __init__(self, doing: str, *, is_quiet: bool = False, on: Console | None = None) -> None:
        self._doing = doing
        self._on = on or err
        self._is_quiet = is_quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._written_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._is_quiet:
            return self
        if self._on.is_terminal:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.table import Column

            # It goes on below on a narrow terminal, where rich would cut it.
            told = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
            columns = (SpinnerColumn(), TimeElapsedColumn(), told)
            self._progress = Progress(*columns, console=self._on, transient=True)
            self._task = self._progress.add_task(visible(self._doing), total=None)
            self._progress.start()
        else:
            self._on.print(visible(self._doing), markup=False, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def tell(self, doing: str) -> None:
        """Say what is waited for now."""
        if self._is_quiet or doing == self._doing:
            return
        before, self._doing = self._doing, doing
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=visible(doing))
            return
        is_new = SECONDS.sub("", doing) != SECONDS.sub("", before)
        if is_new or time.monotonic() - self._written_at >= QUIET_SECONDS:
            self._written_at = time.monotonic()
            self._on.print(visible(doing), markup=False, soft_wrap=True)
