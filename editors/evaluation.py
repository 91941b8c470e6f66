"""Measures editors on edits to a fresh base: `python -m editors.evaluation --help`. Needs no service.

The figures are defined in `edit_figures` and `stream_metrics`, the protocols in `protocols`. The same command gives
the same figures; what differs between two runs is under `cost`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from editors.base import Editor
from editors.datasets import read_edits, read_text
from editors.edit_probes import EditProbes
from editors.evaluation_arguments import fine_tuning_of, parser, protocol_of, settings_of
from editors.evaluation_report import Reporter
from editors.fine_tuning import FineTuningEditor
from editors.fingerprint import base_digest
from editors.loading import load_base
from editors.prior import measure_prior
from editors.protocols import Course
from editors.selection import editor_for, resolved
from editors.trained import TrainedEditor
from pipeline.domain.errors import CorrigendaError, Misconfigured
from pipeline.domain.trials import EditorSettings


def evaluate(given: argparse.Namespace, reporter: Reporter) -> dict[str, Any]:
    """Put every solver through the same course and return the figures.

    Raises:
        CorrigendaError: if an input cannot be used or the editor fails.
    """
    protocol = protocol_of(given)
    trained = TrainedEditor.load(given.editor, base_digest(given.model)) if given.editor else None
    contestants = settings_of(given, _trained_settings(trained))
    edits = read_edits(given.data, limit=given.edits)
    text, prior_lines = read_text(given.text), read_text(given.prior_text).splitlines()
    reporter.say(f"{len(edits)} edits; loading {given.model}")
    model = load_base(given.model, next(iter(contestants.values())).inner_params, task=given.task)
    contestants = {name: resolved(settings, model) for name, settings in contestants.items()}
    editors = {name: _editor(given, settings, trained) for name, settings in contestants.items()}
    reporter.say("measuring the base")
    prior = measure_prior(model, prior_lines)
    probes = EditProbes(
        model, edits, text, num_rephrases=given.rephrases, num_rows=given.rephrase_rows, seed=given.seed
    )
    found = {}
    for name, settings in contestants.items():
        with reporter.following(name, len(edits)) as follower:
            course = Course(model=model, prior=prior, probes=probes, edits=edits, protocol=protocol, tell=follower)
            described = asdict(settings)
            found[name] = {"settings": described} | course.run(editors[name], settings)
    reporter.table(found)
    inputs = _inputs(given) | {"edits": len(edits), "editor_digest": trained.digest if trained else None}
    base = {**asdict(probes.figure), "fluency": probes.fluency}
    return {"inputs": inputs, "protocol": asdict(protocol), "base": base, "solvers": found}


def _editor(given: argparse.Namespace, settings: EditorSettings, trained: TrainedEditor | None) -> Editor:
    if settings.solver == "ft":
        return FineTuningEditor(fine_tuning_of(given))
    return editor_for(settings, trained.transform if trained else None)


def _trained_settings(trained: TrainedEditor | None) -> dict[str, Any]:
    """How a trained editor has to be used."""
    if trained is None:
        return {}
    names = tuple(name for stage in trained.card.stages for name in stage.inner_params)
    subject = tuple(n for stage in trained.card.stages if stage.key_tokens == "subject" for n in stage.inner_params)
    fixed = {"inner_params": names, "subject_params": subject, "rest": trained.card.rest, "solver": trained.card.solver}
    return trained.card.settings | fixed | {"transform": trained.digest}


def _inputs(given: argparse.Namespace) -> dict[str, Any]:
    files = {name: str(getattr(given, name)) for name in ("data", "model", "text", "prior_text")}
    ft = asdict(fine_tuning_of(given)) if given.solver and "ft" in given.solver else None
    return files | {"rephrases": given.rephrases, "rephrase_rows": given.rephrase_rows, "ft": ft}


def _write(given: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    text = json.dumps(figures, indent=2, allow_nan=False)
    if given.json == "-":
        print(text)
    elif given.json:
        Path(given.json).write_text(text + "\n", encoding="utf-8")
    if given.out:
        from editors.curves import draw

        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "figures.json").write_text(text + "\n", encoding="utf-8")
        points = {name: found.get("checkpoints") or [found] for name, found in figures["solvers"].items()}
        draw(given.out / "curves.png", _title(figures), points, base=figures["base"] | {"drawdown": 0.0})


def _title(figures: Mapping[str, Any]) -> str:
    inputs, protocol = figures["inputs"], figures["protocol"]
    how = "one at a time" if protocol["kind"] == "single" else f"in batches of {protocol['batch']}"
    return f"{inputs['edits']:,} edits {how}: {Path(inputs['data']).name} on {Path(inputs['model']).name}"


def _finite(value: Any) -> Any:
    """The figures with None where a number cannot be written down."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures; one sentence on standard error and exit status 1 when an input cannot be used."""
    try:
        given = parser().parse_args(arguments)
        if not given.json and not given.out:
            raise Misconfigured("expected --json or --out to say where the figures go, got neither")
        _write(given, _finite(evaluate(given, Reporter())))
    except (CorrigendaError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
