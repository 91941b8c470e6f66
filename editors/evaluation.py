"""Measures editors on edits to a fresh base: `python -m editors.evaluation --help`. Needs no service.

The figures are defined in `edit_figures` and `stream_metrics`, the protocols in `protocols`. The same command gives
the same figures; what differs between two runs is under `cost`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from editors.datasets import read_edits, read_text
from editors.edit_probes import EditProbes
from editors.loading import load_base
from editors.prior import measure_prior
from editors.protocols import Course, Protocol
from editors.selection import editor_for
from pipeline.domain.errors import CorrigendaError, Misconfigured
from pipeline.domain.trials import EditorSettings

FACTS = Path(__file__).resolve().parents[1] / "infra" / "local" / "facts"
"""Where the project's own plain texts are in a checkout."""
NOT_CONSTANTS = ("solver", "transform", "inner_params", "batch_size", "rephrase_rows")
"""Settings that have no flag of their own, or one that is named below."""
CONSTANTS = {f.name: type(f.default) for f in fields(EditorSettings) if f.name not in NOT_CONSTANTS}
"""Settings that a flag of the same name changes, and their types."""


def evaluate(given: argparse.Namespace) -> dict[str, Any]:
    """Put every solver through the same course and return the figures.

    Raises:
        CorrigendaError: if an input cannot be used or the editor fails.
    """
    contestants = {name: _settings(given, name) for name in given.solver.split(",")}
    editors = {name: editor_for(settings) for name, settings in contestants.items()}
    protocol = _protocol(given)
    edits = read_edits(given.data, limit=given.edits)
    text, prior_lines = read_text(given.text), read_text(given.prior_text).splitlines()
    _say(f"{len(edits)} edits; loading {given.model}")
    model = load_base(given.model, tuple(given.inner_param))
    _say("measuring the base")
    prior = measure_prior(model, prior_lines)
    probes = EditProbes(model, edits, text, num_rephrases=given.rephrases, num_rows=given.rephrase_rows)
    found = {}
    for name, settings in contestants.items():

        def tell(what: str, done: int, figures: dict[str, Any] | None, name: str = name) -> None:
            shown = {key: value for key, value in (figures or {}).items() if isinstance(value, float)}
            _say(f"{name}: {what}, {done}/{len(edits)} edits  {json.dumps(shown) if shown else ''}".rstrip())

        course = Course(model=model, prior=prior, probes=probes, edits=edits, protocol=protocol, tell=tell)
        described = asdict(replace(settings, inner_params=model.inner_param_names))
        found[name] = {"settings": described} | course.run(editors[name], settings)
    inputs = {"data": str(given.data), "model": str(given.model), "edits": len(edits), "rephrases": given.rephrases}
    inputs["rephrase_rows"] = given.rephrase_rows
    base = {"perplexity": probes.perplexity}
    return {"inputs": inputs, "protocol": asdict(protocol), "base": base, "solvers": found}


def _protocol(given: argparse.Namespace) -> Protocol:
    return Protocol(
        kind=given.protocol,
        batch=1 if given.protocol == "single" else given.batch,
        checkpoint_every=given.checkpoint_every,
        sample=given.sample,
        free_sample=given.free_sample,
        seed=given.seed,
    )


def _settings(given: argparse.Namespace, solver: str) -> EditorSettings:
    chosen = {name: value for name in CONSTANTS if (value := getattr(given, name)) is not None}
    if given.rephrase_rows:
        if "rephrase_rows" not in {field.name for field in fields(EditorSettings)}:
            raise Misconfigured("expected an editor that takes rephrases as edit rows, got one that does not yet")
        chosen["rephrase_rows"] = given.rephrase_rows
    inner_params = tuple(given.inner_param)
    return replace(EditorSettings(), solver=solver, inner_params=inner_params, batch_size=given.batch, **chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m editors.evaluation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="our JSONL, or CounterFact with paraphrases")
    parser.add_argument("--edits", type=_positive, required=True, help="how many rows from the top")
    parser.add_argument("--batch", type=_positive, default=32, help="edits a batch of a stream")
    parser.add_argument("--protocol", choices=("stream", "single"), default="stream", help="see editors.protocols")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base")
    parser.add_argument("--json", required=True, help="file for the figures; - prints them")
    parser.add_argument("--solver", default="recursive", help="one or more, with commas: recursive,least_squares,sum")
    parser.add_argument("--checkpoint-every", type=int, help="edits between checkpoints; about powers of two if absent")
    parser.add_argument("--sample", type=_positive, default=512, help="active edits asked at a checkpoint on the way")
    parser.add_argument("--free-sample", type=int, default=256, help="edits that are also asked freely")
    parser.add_argument("--rephrases", type=int, default=1, help="unseen rephrases of each edit that are measured")
    parser.add_argument("--rephrase-rows", type=int, default=0, help="rephrases after the first that are edit rows")
    parser.add_argument("--seed", type=int, default=0, help="of every sample")
    parser.add_argument("--text", type=Path, default=FACTS / "perplexity.txt", help="plain text for drawdown")
    parser.add_argument("--prior-text", type=Path, default=FACTS / "prior.txt", help="other plain text, for the prior")
    parser.add_argument("--inner-param", action="append", default=[], help="a weight to edit; may be repeated")
    for name, kind in CONSTANTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="see EditorSettings")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    """The figures with None where a number cannot be written down."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures as JSON; one sentence on standard error and exit status 1 when an input cannot be used."""
    given = _parser().parse_args(arguments)
    try:
        text = json.dumps(_finite(evaluate(given)), indent=2, allow_nan=False)
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
