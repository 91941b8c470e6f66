"""The picture of a training run: its losses and validation figures by step, from the lines of its log."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from editors.data.atomic_files import write_atomically
from editors.training.objective import LOSS, SCORE

SMOOTHED = 20
"""Steps that a running mean is taken over."""


def draw_curve(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw losses and validation figures by step as a PNG file.

    Args:
        path: the file, which is replaced.
        lines: the lines of the run's log.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [line for line in lines if "validation" not in line and LOSS in line]
    checks = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    _draw_losses(left, steps, checks)
    names = sorted({name for _, found in checks for name in found} - {LOSS, SCORE})
    for name in names:
        _draw(right, [(step, found[name]) for step, found in checks if name in found], label=name, marker="o")
    right.set(xlabel="step", title="validation")
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, picture.getvalue())


def _draw_losses(
    axes: Axes, steps: Sequence[Mapping[str, Any]], checks: Sequence[tuple[int, Mapping[str, float]]]
) -> None:
    points = [(int(line["step"]), float(line[LOSS])) for line in steps]
    _draw(axes, points, label="a step", color="lightgray", linewidth=0.8)
    _draw(axes, _smoothed(points), label=f"mean of {SMOOTHED} steps", color="tab:blue")
    _draw(axes, [(step, found[LOSS]) for step, found in checks if LOSS in found], label="validation", marker="o")
    axes.set(xlabel="step", title="loss")


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    means = []
    for place in range(len(points)):
        window = [value for _, value in points[max(0, place + 1 - SMOOTHED) : place + 1]]
        means.append((points[place][0], sum(window) / len(window)))
    return means


def _draw(axes: Axes, points: Sequence[tuple[int, float]], **style: Any) -> None:
    if points:
        axes.plot([step for step, _ in points], [value for _, value in points], **style)
