"""Measures editors on edits to a fresh base, without any service.

    python -m editors.evaluation --model base --data facts.jsonl --edits 64 --solver row_sum,recursive --out measured

The figures are defined in `metrics`, the protocols in `protocols`. The same command gives the same figures; what
differs between two runs is under `cost`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from editors.data.atomic_files import write_atomically
from editors.data.datasets import (
    prior_lines,
    prior_subjects,
    read_edits,
    read_suite,
    read_text,
    without_question,
)
from editors.evaluation.arguments import fine_tuning_of, folding_of, parser, prior_texts, protocol_of
from editors.evaluation.methods import methods_of
from editors.evaluation.probes import MOST_REPHRASES, EditProbes
from editors.evaluation.protocols import FOLDED, Evaluation, OnProgress
from editors.evaluation.report import Reporter
from editors.methods.folding import FoldEditor
from editors.models.families import EditableModel
from editors.solve.prior import Prior, measure_prior
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit
from pipeline.domain.errors import CorrigendaError, Misconfigured
from pipeline.domain.formats.canonical import finite
from pipeline.domain.rank_api import EditorSettings
from pipeline.domain.wordings import Wording

NO_PRIOR = Prior(moments={}, gradient_moments={}, num_tokens=0)
"""What methods get that read no prior: measuring one takes minutes."""
Save = Callable[[Mapping[str, Any]], None]
"""Called with all figures as far as they are."""


def evaluate(given: argparse.Namespace, reporter: Reporter, save: Save) -> None:
    """Measure every method on the same edits in the same way.

    Args:
        given: the command line.
        reporter: shows how far it is.
        save: called after each checkpoint, and when all is done.

    Raises:
        CorrigendaError: if an input cannot be used or the editor fails.
    """
    methods = methods_of(given)
    folding = folding_of(given)
    if folding is not None and list(methods) != ["recursive"]:
        raise Misconfigured(f"expected the solver recursive alone with --fold, got {', '.join(methods)}")
    lines = [line for path in prior_texts(given) for line in prior_lines(path)] if folding is not None else []
    asked = read_edits(given.data, limit=given.edits)
    edits = [without_question(edit) for edit in asked] if given.unseen_questions else asked
    names = next(iter(methods.values())).settings.inner_params
    with reporter.working(f"{len(edits)} edits; loading {given.model}"):
        loaded = load_base(given.model, names, task=given.task, device=given.device)
    num_rows = max(method.settings.rephrase_rows for method in methods.values())
    inputs = _inputs(given) | {"edits": len(edits), "rephrase_rows": num_rows}
    figures: dict[str, Any] = {"inputs": inputs, "protocol": asdict(protocol_of(given)), "is_complete": False}
    found: dict[str, Any] = {}
    probes: EditProbes | None = None
    priors: dict[tuple[str, ...], Prior] = {}
    for name, method in methods.items():
        model = method.model_of(loaded)
        settings, editor = method.on(model)
        if method.reads_prior and model.inner_param_names not in priors:
            with reporter.working("measuring the prior over plain text"):
                priors[model.inner_param_names] = _measured_prior(given, model)
        prior = priors[model.inner_param_names] if method.reads_prior else NO_PRIOR
        if probes is None:
            with reporter.working(f"asking the base about {len(edits)} edits"):
                probes = _asked_base(given, model, asked, num_rows)
                measured = _evaluation(given, model, prior, probes, edits)
                at_large = {**asdict(probes.figure), "fluency": probes.fluency}
                figures["base"] = at_large | measured.known()
            figures["solvers"] = found
        measured = _evaluation(given, model, prior, probes.of(model), edits)
        if folding is not None:
            measured = replace(measured, fold=FoldEditor(folding, lines, settings))
        checkpoints: list[dict[str, Any]] = []
        found[name] = {"settings": _shown(settings), "checkpoints": checkpoints}
        with reporter.following(name, len(edits)) as show:
            on_progress = partial(_recorded, show, checkpoints, partial(save, figures))
            whole = measured.run(editor, settings, on_progress)
        folded = whole.pop(FOLDED, None)
        found[name] = {"settings": _shown(settings)} | whole
        if folded is not None:
            found[f"{name}, {FOLDED}"] = {"settings": _shown(settings)} | folded
    reporter.table({"base": figures["base"]} | found)
    save(figures | {"is_complete": True})


def _recorded(
    show: OnProgress,
    checkpoints: list[dict[str, Any]],
    save: Callable[[], None],
    what: str,
    done: int,
    figures: dict[str, Any] | None,
) -> None:
    """Show progress; keep a checkpoint and save it, so that a run that is cut off has left what it measured."""
    show(what, done, figures)
    if figures is not None:
        checkpoints.append(figures)
        save()


def _shown(settings: EditorSettings) -> dict[str, Any]:
    """Return settings as they are printed: with `rest` too, the first name of `stop_probability`."""
    return {**asdict(settings), "rest": settings.stop_probability}


def most_rephrases(given: argparse.Namespace) -> Mapping[Wording, int]:
    """Return how many unseen rephrases of an edit are asked at most, by class."""
    return MOST_REPHRASES if given.rephrases is None else dict.fromkeys(Wording, given.rephrases)


def _asked_base(given: argparse.Namespace, model: EditableModel, asked: Sequence[Edit], num_rows: int) -> EditProbes:
    """Ask the base.

    Args:
        given: the command line.
        model: holds the base's weights.
        asked: the edits with all that is asked of them.
        num_rows: most rephrases of an edit that are edit rows.
    """
    suite = [item.probe for item in read_suite(given.suite)] if given.suite else None
    return EditProbes(
        model,
        asked,
        read_text(given.text),
        suite=suite,
        most_rephrases=most_rephrases(given),
        num_rows=num_rows,
        seed=given.seed,
    )


def _measured_prior(given: argparse.Namespace, model: EditableModel) -> Prior:
    """Measure the prior of the base, whose weights the model holds."""
    texts = prior_texts(given)
    return measure_prior(model, *map(prior_lines, texts), subjects=prior_subjects(texts))


def _evaluation(
    given: argparse.Namespace, model: EditableModel, prior: Prior, probes: EditProbes, edits: Sequence[Edit]
) -> Evaluation:
    return Evaluation(model=model, prior=prior, probes=probes, edits=edits, protocol=protocol_of(given))


def _inputs(given: argparse.Namespace) -> dict[str, Any]:
    names = ("data", "model", "text", "suite")
    files: dict[str, Any] = {name: str(path) if (path := getattr(given, name)) else None for name in names}
    files["prior_text"] = [str(path) for path in prior_texts(given)]
    shown = {"rephrases": most_rephrases(given), "unseen_questions": given.unseen_questions}
    return files | shown | {"task": given.task, "device": given.device, "ft": asdict(fine_tuning_of(given))}


def _write(given: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write the figures; those that are not complete go into files only."""
    text = json.dumps(finite(figures), indent=2, allow_nan=False)
    if given.json == "-":
        if figures["is_complete"]:
            print(text)
    elif given.json:
        Path(given.json).write_text(text + "\n", encoding="utf-8")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        write_atomically(given.out / "figures.json", f"{text}\n".encode())
    if given.out and figures["is_complete"]:
        from editors.evaluation.curves import draw

        points = {name: found.get("checkpoints") or [found] for name, found in figures["solvers"].items()}
        draw(given.out / "curves.png", _title(figures), points, base=figures["base"] | {"drawdown": 0.0})


def _title(figures: Mapping[str, Any]) -> str:
    inputs, protocol = figures["inputs"], figures["protocol"]
    how = "one at a time" if protocol["kind"] == "single" else f"in batches of {protocol['batch']}"
    return f"{inputs['edits']:,} edits {how}: {Path(inputs['data']).name} on {Path(inputs['model']).name}"


def _check_writable(target: str | None) -> None:
    """Say before the measuring that the file for the figures cannot be written."""
    if target is None or target == "-":
        return
    path = Path(target)
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise Misconfigured(f"expected a file that can be written for --json, got {target}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures; one sentence on standard error and exit status 1 when an input cannot be used."""
    try:
        given = parser().parse_args(arguments)
        given.json = given.json or (None if given.out else "-")
        _check_writable(given.json)
        evaluate(given, Reporter(), partial(_write, given))
    except (CorrigendaError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
