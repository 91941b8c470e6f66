"""Plots of a snapshot as pictures: metrics along its lineage, and probabilities of its edits before and after.

Drawn with matplotlib, which comes with MLflow, and without its global state: registrations run in threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.adapters.mlflow.answers import asked, before_after
from pipeline.services.registry.registry_ports import RegistryEntry, TrendPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = ("edit_success", "free_success", "generalization", "locality", "retention", "chat_success")
QUALITY = ("perplexity", "accuracy")
MAX_BARS = 30
"""Edits that are drawn."""
MAX_LABEL = 60
"""Characters of an edit's label."""
LACKING = "□"
"""Stands for a letter that the font does not have: pictures have one that comes with matplotlib, and few scripts."""
LEFT_TO_RIGHT = "\u200e"
"""Keeps the order of a label whatever script its parts are in."""
TO = f"{LEFT_TO_RIGHT}→{LEFT_TO_RIGHT}"
BEFORE, AFTER = "#9aa5b1", "#1f6feb"


def write_plots(entry: RegistryEntry, folder: Path) -> Path:
    """Write `plots/`: `lineage.png` and, where edits were measured, `edits.png`."""
    target = folder / "plots"
    target.mkdir(parents=True)
    if entry.around.trend:
        _lineage(entry).savefig(target / "lineage.png", dpi=110)
    rows = [row for row in before_after(entry) if row["prob_new"] is not None][:MAX_BARS]
    if rows:
        _edits(entry, rows).savefig(target / "edits.png", dpi=110)
    return target


def _lineage(entry: RegistryEntry) -> Figure:
    trend = entry.around.trend
    found = _figure(9, 6.5)
    # Margins by hand: to find them takes longer than to draw it, and every registration waits for it.
    margins = {"left": 0.09, "right": 0.82, "top": 0.94, "bottom": 0.08, "hspace": 0.06}
    shares, quality = found.subplots(2, 1, sharex=True, height_ratios=[2, 1], gridspec_kw=margins)
    for names, axes in ((SHARES, shares), (QUALITY, quality)):
        for name in names:
            points = [(point.seq, value) for point in trend if (value := point.values.get(name)) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name.replace("_", " "))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    shares.set_ylim(-0.04, 1.04)
    shares.set_ylabel("share")
    quality.set_ylabel("quality")
    quality.set_xlabel("snapshot")
    quality.set_xticks(_ticks(trend))
    found.suptitle(_plain(f"{entry.lineage.settings.name}: what the gates measured, snapshot by snapshot"), fontsize=11)
    return found


def _edits(entry: RegistryEntry, rows: Sequence[dict[str, Any]]) -> Figure:
    found = _figure(9, 1.4 + 0.42 * len(rows), layout="constrained")
    axes = found.subplots()
    places = range(len(rows))
    axes.barh([place - 0.2 for place in places], [row["prob_before"] or 0.0 for row in rows], 0.36, color=BEFORE)
    axes.barh([place + 0.2 for place in places], [row["prob_new"] for row in rows], 0.36, color=AFTER)
    axes.set_yticks(list(places), [edit_label(place, row) for place, row in enumerate(rows, 1)], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability of the wanted answer, geometric mean over its tokens")
    axes.legend(
        ["before, on the parent", "after"], loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, frameon=False
    )
    axes.spines[["top", "right"]].set_visible(False)
    shown = f"first {len(rows)} of {len(entry.edits)} edits" if len(rows) < len(entry.edits) else "edits"
    axes.annotate(
        _plain(f"snapshot {entry.snapshot.seq}: {shown}"), (1, 1.02), xycoords="axes fraction", ha="right", fontsize=9
    )
    return found


def edit_label(place: int, row: dict[str, Any]) -> str:
    """Return an edit's place on the version's page and its text; its request id where the font lacks letters of it."""
    text = f"{asked(row)} {TO} {row['wanted']}"
    if LACKING in _plain(text):
        text = f"request {row['request_id']}"
    return _plain(f"{LEFT_TO_RIGHT}{place}. {text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + '…'}")


def _plain(text: str) -> str:
    """Return text that matplotlib takes as it is: dollars would begin a formula, and signs that its font lacks warn."""
    from matplotlib.font_manager import fontManager, get_font

    known = get_font(fontManager.findfont("DejaVu Sans")).get_charmap()
    return "".join(char if ord(char) in known else LACKING for char in " ".join(text.split())).replace("$", r"\$")


def _ticks(trend: Sequence[TrendPoint]) -> list[int]:
    step = max(1, len(trend) // 12)
    return [point.seq for point in trend[::-1][::step]]


def _figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)
