"""One screen that shows the stream live, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipeline.entrypoints.console import out

KEPT_LINES = 8
SPARED_ROWS = 12
"""Rows of a terminal that events do not take: the frame, the counters, what is being done, and what stood before."""
FRAME_COLUMNS = 4


class StreamScreen:
    """Context manager: counters and the last events of the stream."""

    def __init__(self, *, started_at: float) -> None:
        self._started_at = started_at
        self._counts: Mapping[str, int] = {}
        self._lines: list[str] = []
        self._spinner = Spinner("dots")
        self._doing = ""
        self._live = Live(self._render(), console=out, refresh_per_second=4) if out.is_terminal else None

    def __enter__(self) -> StreamScreen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live:
            self._live.update(self._render())
            self._live.stop()

    def show(self, counts: Mapping[str, int]) -> None:
        """Show the counters of the stream; in plain lines only when they changed."""
        if self._live:
            self._counts = dict(counts)
            self._live.update(self._render())
        elif counts != self._counts:
            self._counts = dict(counts)
            figures = "  ".join(f"{name} {count}" for name, count in counts.items())
            out.print(f"{self._seconds()}  {figures}", soft_wrap=True)

    def doing(self, what: str) -> None:
        """Say what is waited for now; shown beside a moving sign on a terminal, and nowhere else."""
        self._doing = what

    def say(self, line: str) -> None:
        """Add a line to the last events."""
        self._lines = [*self._lines, f"{self._seconds()}  {line}"][-KEPT_LINES:]
        if self._live:
            self._live.update(self._render())
        else:
            out.print(self._lines[-1], markup=False, soft_wrap=True)

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._started_at:6.1f} s"

    def _render(self) -> RenderableType:
        counters = [Text.assemble((str(count), "bold"), (f" {name}", "dim")) for name, count in self._counts.items()]
        events = Text("\n").join(self._newest())
        doing = Table.grid(padding=(0, 1))
        doing.add_column()
        doing.add_column(no_wrap=True, overflow="ellipsis", style="cyan")
        doing.add_row(self._spinner, Text(self._doing))
        together = Group(Columns(counters, padding=(0, 3), equal=True), Text(), events, Text(), doing)
        return Panel(together, title="the stream", border_style="dim")

    def _newest(self) -> list[Text]:
        """Return the last events, broken into lines as wide as the frame, as many as the terminal has room for."""
        room, found = out.height - SPARED_ROWS, list[Text]()
        for line in reversed(self._lines):
            parts = Text(line).wrap(out, out.width - FRAME_COLUMNS)
            if found and len(found) + len(parts) > room:
                break
            found = [*parts, *found]
        return found
