"""Measures editors on edits to a fresh base, without any service.

    python -m editors.evaluation --model base --data facts.jsonl --edits 64 --solver row_sum,recursive --out measured

The figures are defined in `metrics`, the protocols in `protocols`. The same command gives the same figures; what
differs between two runs is under `cost`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from rich.console import Console

from editors.data.datasets import without_question
from editors.evaluation.arguments import DEVICE, fine_tuning_of, folding_of, parser, prior_texts, protocol_of
from editors.evaluation.figures import STANDARD_OUTPUT, Figures
from editors.evaluation.inputs import Inputs, read_inputs
from editors.evaluation.methods import Method, methods_of
from editors.evaluation.place import HERE, Place
from editors.evaluation.probes import MOST_REPHRASES, EditProbes
from editors.evaluation.protocols import FOLDED, Evaluation, OnProgress
from editors.evaluation.report import Reporter
from editors.methods.folding import FoldEditor
from editors.models.families import EditableModel
from editors.solve.prior import Prior, measure_prior
from pipeline.domain.edits import Edit
from pipeline.domain.errors import CorrigendaError, EditorFailed, Misconfigured
from pipeline.domain.formats.refusals import INTERRUPTED, refused_in_a_sentence
from pipeline.domain.rank_api import EditorSettings
from pipeline.domain.wordings import Wording

NO_PRIOR = Prior(moments={}, gradient_moments={}, num_tokens=0)
"""What methods get that read no prior: measuring one takes minutes."""
Save = Callable[[Mapping[str, Any]], None]
"""Called with all figures as far as they are."""


def evaluate(given: argparse.Namespace, reporter: Reporter, figures: Figures, place: Place = HERE) -> None:
    """Measure every method on the same edits in the same way.

    Args:
        given: the command line.
        reporter: shows how far it is.
        figures: where they go, after each checkpoint and at the end, whatever ended it.
        place: where the base is; all ranks that hold it together have to call.

    Raises:
        CorrigendaError: if an input cannot be used or the editor fails.
    """
    methods = methods_of(given)
    folding = folding_of(given)
    if folding is not None and list(methods) != ["recursive"]:
        raise Misconfigured(f"expected the solver recursive alone with --fold, got {', '.join(methods)}")
    if place.is_shared and (folding is not None or list(methods) != ["recursive"]):
        got = f"{', '.join(methods)}{' and --fold' if folding is not None else ''}"
        raise Misconfigured(f"expected the solver recursive alone with --ranks, and no --fold, got {got}")
    read = read_inputs(given)
    edits = [without_question(edit) for edit in read.asked] if given.unseen_questions else read.asked
    names = next(iter(methods.values())).settings.inner_params
    with reporter.working(f"{len(edits)} edits; loading {given.model}"):
        loaded = place.load(given.model, names, task=given.task, device=given.device)
    num_rows = max(method.settings.rephrase_rows for method in methods.values())
    inputs = _inputs(given) | {"edits": len(edits), "rephrase_rows": num_rows}
    found: dict[str, Any] = {"inputs": inputs, "protocol": asdict(protocol_of(given)), "is_complete": False}
    try:
        _measure(
            given, methods, loaded, read, edits, reporter, place, num_rows=num_rows, found=found, save=figures.save
        )
    except BaseException:
        measured = {name: one for name, one in found.get("solvers", {}).items() if one.get("checkpoints") != []}
        if measured:
            figures.end(found | {"solvers": measured})
        raise
    reporter.table({"base": found["base"]} | found["solvers"])
    figures.end(found | {"is_complete": True})
    for name, one in found["solvers"].items():
        if not one["editing"]["batches"]:
            raise EditorFailed(f"expected a batch that {name} can edit, got none: {one['editing']['first_failure']}")


def _measure(
    given: argparse.Namespace,
    methods: Mapping[str, Method],
    loaded: EditableModel,
    read: Inputs,
    edits: Sequence[Edit],
    reporter: Reporter,
    place: Place,
    *,
    num_rows: int,
    found: dict[str, Any],
    save: Save,
) -> None:
    """Ask the base and measure the methods, one after the other, into the figures `found`."""
    folding = folding_of(given)
    probes: EditProbes | None = None
    priors: dict[tuple[str, ...], Prior] = {}
    for name, method in methods.items():
        model = method.model_of(loaded)
        settings, editor = method.on(model)
        if method.reads_prior and model.inner_param_names not in priors:
            with reporter.working("measuring the prior over plain text"):
                whole_prior = measure_prior(model, *read.prior, subjects=read.subjects)
                priors[model.inner_param_names] = place.own(whole_prior)
        prior = priors[model.inner_param_names] if method.reads_prior else NO_PRIOR
        if probes is None:
            with reporter.working(f"asking the base about {len(edits)} edits"):
                probes = _asked_base(given, model, read, num_rows)
                measured = _evaluation(given, model, prior, probes, edits)
                at_large = {**asdict(probes.figure), "fluency": probes.fluency}
                found["base"] = at_large | measured.known()
            found["solvers"] = {}
        measured = replace(_evaluation(given, model, prior, probes.of(model), edits), weights_of=place.weights_of)
        if folding is not None:
            lines = [line for text in read.prior for line in text]
            measured = replace(measured, fold=FoldEditor(folding, lines, settings))
        checkpoints: list[dict[str, Any]] = []
        found["solvers"][name] = {"settings": _shown(settings), "checkpoints": checkpoints}
        with reporter.following(name, len(edits)) as show:
            whole = measured.run(editor, settings, partial(_recorded, show, checkpoints, partial(save, found)))
        folded = whole.pop(FOLDED, None)
        found["solvers"][name] = {"settings": _shown(settings)} | whole
        if folded is not None:
            found["solvers"][f"{name}, {FOLDED}"] = {"settings": _shown(settings)} | folded


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


def _asked_base(given: argparse.Namespace, model: EditableModel, read: Inputs, num_rows: int) -> EditProbes:
    """Ask the base.

    Args:
        given: the command line.
        model: holds the base's weights.
        read: what is asked.
        num_rows: most rephrases of an edit that are edit rows.
    """
    return EditProbes(
        model,
        read.asked,
        read.text,
        suite=read.suite,
        most_rephrases=most_rephrases(given),
        num_rows=num_rows,
        seed=given.seed,
    )


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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None, *, place: Place = HERE, say: Callable[[str], None] = _say) -> int:
    """Write the figures; one sentence and exit status 1 when an input cannot be used, or no edit.

    Args:
        arguments: the command line.
        place: where the base is; of ranks that hold it together the first one shows and writes what is found.
        say: gets the sentence; prints it on standard error if left out.
    """
    figures: Figures | None = None

    def said(sentence: str) -> None:
        part = figures.part if figures is not None else None
        say(sentence if part is None else f"{sentence}; what was measured until then is in {part}")

    try:
        with refused_in_a_sentence():
            given = parser().parse_args(arguments)
        if place.is_shared and given.device != DEVICE:
            raise Misconfigured("expected --device for one process, got it with ranks, which each have their own")
        given.json = given.json or (None if given.out else STANDARD_OUTPUT)
        if place.is_first:
            figures = Figures(given.out, given.json)
            evaluate(given, Reporter(), figures, place)
        else:
            evaluate(given, Reporter(Console(quiet=True, force_terminal=False)), Figures(None, None), place)
    except KeyboardInterrupt:
        said("stopped")
        return INTERRUPTED
    except (CorrigendaError, OSError) as error:
        said(" ".join(str(error).split()))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
