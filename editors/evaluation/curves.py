"""Draws the figures of an evaluation: one panel a metric, a line a solver, over the number of edits.

Where every solver was measured at one point only, the panels hold a bar a solver instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter

from editors.evaluation.metrics import value_at

Points = Sequence[Mapping[str, Any]]
"""Checkpoints of a solver, in the order of the stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One metric of the picture."""

    title: str
    """What stands above the panel."""
    path: tuple[str, ...]
    """Names under which the metric stands in a checkpoint, from the outside in."""
    is_share: bool = True
    """Whether the metric lies between 0 and 1."""
    is_percent: bool = False
    """Whether the metric is shown in percent."""
    linear_to: float | None = None
    """Where the scale turns logarithmic, if a collapse would otherwise flatten everything else."""


PANELS = (
    Panel(title="edit success, teacher-forced", path=("edit_success",)),
    Panel(title="edit success, free generation", path=("greedy", "edit_success")),
    Panel(title="retention of the first 10 %", path=("retention_first_tenth",)),
    Panel(title="generalization, same text left of the subject", path=("generalization_same_context",)),
    Panel(title="generalization, other text left of the subject", path=("generalization_other_context",)),
    Panel(title="portability, and rephrases without the subject", path=("portability",)),
    Panel(title="questions in a chat", path=("chat_success",)),
    Panel(
        title="drawdown: perplexity of plain text", path=("drawdown",), is_share=False, is_percent=True, linear_to=0.1
    ),
    Panel(title="locality: neighbours unchanged", path=("locality_unchanged",)),
    Panel(title="locality: KL from the base, nats", path=("locality_kl",), is_share=False, linear_to=0.5),
    Panel(title="neighbours: P(true) > P(new)", path=("neighbourhood",)),
    Panel(title="fluency: n-gram entropy, bits", path=("fluency",), is_share=False),
)
"""The panels in rows of three."""
MARKERS = "osD^vP*X"
"""Matplotlib's markers, one a solver."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's palette: told apart by the colour-blind too."""


def draw(path: Path, title: str, solvers: Mapping[str, Points], *, base: Mapping[str, float | None]) -> None:
    """Write the picture of all panels.

    Args:
        path: the PNG file.
        title: what stands above everything.
        solvers: checkpoints by solver.
        base: figures of the unedited base, drawn as a dotted line where a panel has one.
    """
    figure = Figure(figsize=(12, 12.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    are_curves = any(len(points) > 1 for points in solvers.values())
    axes = figure.subplots(len(PANELS) // 3, 3).flat
    for panel, axis in zip(PANELS, axes, strict=True):
        (_curves if are_curves else _bars)(axis, panel, solvers)
        _dress(axis, panel, base.get(panel.path[0]))
        _scale(axis, panel, [value_at(point, panel.path) or 0.0 for points in solvers.values() for point in points])
    handles, labels = figure.axes[0].get_legend_handles_labels() if are_curves else ([], [])
    handles.append(Line2D([], [], color="black", linewidth=1, linestyle=":"))
    figure.legend(handles, [*labels, "unedited base"], loc="outside lower center", ncols=9, frameon=False)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _curves(axis: Axes, panel: Panel, solvers: Mapping[str, Points]) -> None:
    every = sorted({point["edits"] for points in solvers.values() for point in points})
    for place, (name, points) in enumerate(solvers.items()):
        found = [(point["edits"], value) for point in points if (value := value_at(point, panel.path)) is not None]
        [line] = axis.plot([edits for edits, _ in found], [value for _, value in found], label=name)
        line.set(color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)], markersize=4)
    axis.set_xscale("log", base=2)
    axis.set_xticks(_spread(every))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("edits")


def _bars(axis: Axes, panel: Panel, solvers: Mapping[str, Points]) -> None:
    values = [value_at(points[-1], panel.path) for points in solvers.values()]
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(values))]
    drawn = axis.bar(list(solvers), [value or 0.0 for value in values], color=colours, width=0.6)
    labels = ["not measured" if value is None else _label(value, panel) for value in values]
    axis.bar_label(drawn, labels=labels, padding=2, fontsize=8)


def _scale(axis: Axes, panel: Panel, values: Sequence[float]) -> None:
    if panel.linear_to is not None and max(map(abs, values), default=0.0) > 10 * panel.linear_to:
        axis.set_yscale("symlog", linthresh=panel.linear_to)
        if panel.is_percent:
            axis.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))


def _dress(axis: Axes, panel: Panel, base: float | None) -> None:
    axis.set_title(panel.title, fontsize=10)
    axis.set_axisbelow(True)
    axis.grid(alpha=0.3)
    axis.margins(y=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if panel.is_share:
        axis.set_ylim(-0.03, 1.08)
    if panel.is_percent:
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    if base is not None and not panel.is_share:
        axis.axhline(base, color="black", linewidth=1, linestyle=":")


def _spread(edits: Sequence[int]) -> list[int]:
    """Return ticks at numbers of edits that are far enough apart to be read."""
    ticks: list[int] = []
    for value in edits:
        if not ticks or value >= 1.6 * ticks[-1]:
            ticks.append(value)
    return ticks


def _label(value: float, panel: Panel) -> str:
    return f"{value:+.2%}" if panel.is_percent else f"{value:.2f}"
