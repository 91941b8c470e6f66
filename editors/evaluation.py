"""Measures an editor on a stream of edits to a fresh base: `python -m editors.evaluation --help`. Needs no service.

Batches are applied one after the other as a lineage would, a later correction of a fact taking the earlier one out.
Definitions are those of `stream_metrics`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from editors.base import Editor
from editors.datasets import latest_of_each_fact, read_edits, read_text
from editors.deltas import PlainWeights
from editors.families import CausalModel
from editors.ledger import Ledger
from editors.loading import load_base
from editors.prior import measure_prior
from editors.selection import editor_for
from editors.stream_metrics import StreamProbes
from pipeline.domain.edits import Edit
from pipeline.domain.errors import CorrigendaError
from pipeline.domain.trials import EditorSettings

FACTS = Path(__file__).resolve().parents[1] / "infra" / "local" / "facts"
"""Where the project's own plain texts are in a checkout."""


class Stream:
    """A base that takes batches of edits, and who is active in it."""

    def __init__(self, model: CausalModel, editor: Editor, ledger: Ledger, *, removes: bool) -> None:
        self._model, self._editor, self._ledger, self._removes = model, editor, ledger, removes
        self._weights = PlainWeights(model.module, model.inner)
        self.active: dict[str, Edit] = {}
        self.seconds = 0.0

    def take(self, batch: Sequence[Edit]) -> dict[str, Any]:
        """Edit, apply and remember a batch; returns what a progress line shows."""
        began = time.perf_counter()
        held = {edit.request.conflict_key: edit.edit_id for edit in self.active.values()}
        gone = [held[edit.request.conflict_key] for edit in batch if edit.request.conflict_key in held]
        removed = gone if self._removes else []
        result = self._editor.edit(self._model, self._weights, self._ledger, batch, removed)
        self._weights.apply(result.delta)
        self._ledger.commit(result.rows, result.removed_ids)
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.active = {i: edit for i, edit in self.active.items() if i not in gone}
        self.active |= {edit.edit_id: edit for edit in batch}
        return {"passes": result.num_passes, "superseded": len(gone), "seconds": round(seconds, 2)}


def evaluate(given: argparse.Namespace) -> dict[str, Any]:
    """Run the stream and return the figures.

    Raises:
        CorrigendaError: if an input cannot be used or the editor fails.
    """
    settings = _settings(given)
    editor = editor_for(settings)
    edits = read_edits(given.data, limit=given.edits)
    text, prior_lines = read_text(given.text), read_text(given.prior_text).splitlines()
    _say(f"{len(edits)} edits; loading {given.model}")
    model = load_base(given.model, settings.inner_params)
    _say("measuring the base")
    ledger = Ledger(measure_prior(model, prior_lines), strength=settings.prior_strength)
    probes = StreamProbes.of_base(model, edits, text, num_rephrases=given.rephrases)
    stream = Stream(model, editor, ledger, removes=settings.solver == "recursive")
    checkpoints, applied = [], 0
    first_ids: tuple[str, ...] = ()
    for start in range(0, len(edits), given.batch):
        batch = latest_of_each_fact(edits[start : start + given.batch])
        shown = stream.take(batch)
        applied = min(start + given.batch, len(edits))
        first_ids = first_ids or tuple(edit.edit_id for edit in batch)
        _say(f"{applied}/{len(edits)} edits  {shown}")
        every = given.checkpoint_every
        if applied == len(edits) or (every and applied // every > start // every):
            figures = probes.measure(model, list(stream.active.values()), first_ids)
            checkpoints.append({"edits": applied, **figures, "seconds_per_edit": stream.seconds / applied})
            _say(json.dumps({key: value for key, value in checkpoints[-1].items() if not isinstance(value, dict)}))
    described = asdict(replace(settings, inner_params=model.inner_param_names))
    inputs = {"data": str(given.data), "model": str(given.model), "batch": given.batch, "base": probes.base_figures}
    return {"settings": described, **inputs, **checkpoints[-1], "checkpoints": checkpoints}


def _settings(given: argparse.Namespace) -> EditorSettings:
    names = ("solver", "prior_strength", "ridge", "step", "rest", "num_passes")
    chosen = {name: value for name in names if (value := getattr(given, name)) is not None}
    return replace(EditorSettings(), inner_params=tuple(given.inner_param), batch_size=given.batch, **chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m editors.evaluation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="our JSONL, or CounterFact with paraphrases")
    parser.add_argument("--edits", type=_positive, required=True, help="how many rows from the top")
    parser.add_argument("--batch", type=_positive, default=32, help="edits a batch")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base")
    parser.add_argument("--json", required=True, help="file for the figures; - prints them")
    parser.add_argument("--checkpoint-every", type=_positive, help="also measure every so many edits")
    parser.add_argument("--rephrases", type=int, default=1, help="rephrases of each edit that are measured")
    parser.add_argument("--text", type=Path, default=FACTS / "perplexity.txt", help="plain text for drawdown")
    parser.add_argument("--prior-text", type=Path, default=FACTS / "prior.txt", help="other plain text, for the prior")
    parser.add_argument("--inner-param", action="append", default=[], help="a weight to edit; may be repeated")
    parser.add_argument("--solver", help="recursive (default), least_squares or sum")
    for name in ("prior-strength", "ridge", "step", "rest"):
        parser.add_argument(f"--{name}", type=float, help="see EditorSettings")
    parser.add_argument("--num-passes", type=_positive, help="most passes over a batch")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures as JSON; one sentence on standard error and exit status 1 when an input cannot be used."""
    given = _parser().parse_args(arguments)
    try:
        text = json.dumps(evaluate(given), indent=2, allow_nan=False)
        if given.json == "-":
            print(text)
        else:
            Path(given.json).write_text(text + "\n", encoding="utf-8")
    except (CorrigendaError, OSError) as error:
        _say(" ".join(str(error).split()))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
