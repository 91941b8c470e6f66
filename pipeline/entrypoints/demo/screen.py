"""One screen that shows the stream live, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipeline.entrypoints.console import out

KEPT_LINES = 8


class StreamScreen:
    """Context manager: counters and the last events of the stream."""

    def __init__(self, *, started_at: float) -> None:
        self._started_at = started_at
        self._counts: Mapping[str, int] = {}
        self._lines: list[str] = []
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
        counters = Table.grid(expand=True, padding=(0, 1))
        for _ in self._counts:
            counters.add_column(justify="center")
        counters.add_row(*(Text(str(count), style="bold") for count in self._counts.values()))
        counters.add_row(*(Text(name, style="dim") for name in self._counts))
        events = Text("\n".join(self._lines))
        return Panel(Group(counters, Text(), events), title="the stream", border_style="dim")
