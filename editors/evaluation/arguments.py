"""Knows the command line of an evaluation, and what it says about protocol, solvers and settings. Measures nothing."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from editors.evaluation.protocols import Protocol
from editors.methods.fine_tuning import FineTuning
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import EditorSettings

FACTS = Path(__file__).resolve().parents[2] / "infra" / "local" / "facts"
"""Where the project's own plain texts are in a checkout."""
NOT_CONSTANTS = ("solver", "transform", "batch_size")
"""Settings that are asked for by another name: `--solver`, `--editor`, `--batch`."""
CONSTANTS = {
    field.name: type(field.default)
    for field in fields(EditorSettings)
    if type(field.default) in (int, float, str) and field.name not in NOT_CONSTANTS
}
"""Settings that a flag of the same name changes, and their types."""
NAMES = tuple(field.name for field in fields(EditorSettings) if field.default == ())
"""Settings that are names of weights: a flag without the plural's s, given once for each."""
SOLVERS = ("recursive", "least_squares", "sum", "ft")
"""What `--solver` may name; `ft` is fine-tuning, the baseline."""
EDITOR_HELP = "folder of a trained editor, or SOLVER=FOLDER for one solver; the natural gradient alone if left out"

PRIOR_HELP = "lines, or edits, over which the prior is measured; several files count alike"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="corrigenda evaluate",
        description="Measures editors on edits to a fresh base: a stream of batches, or one edit at a time.",
        allow_abbrev=False,
    )
    made.add_argument("--data", type=Path, required=True, help="edits: our JSONL, CounterFact, zsRE, EasyEdit")
    made.add_argument("--edits", type=_positive, required=True, help="how many from the top")
    made.add_argument("--model", type=Path, required=True, help="folder of the base")
    made.add_argument("--task", default="causal", help="causal, seq2seq or classifier")
    made.add_argument("--json", help="file for the figures; - prints them, as without --out")
    made.add_argument("--out", type=Path, help="folder for figures.json and curves.png")
    _add_protocol(made)
    _add_editor(made)
    made.add_argument("--text", type=Path, default=FACTS / "perplexity.txt", help="plain text for drawdown")
    made.add_argument("--suite", type=Path, help="probes with targets, for the drawdown of a seq2seq or a classifier")
    made.add_argument("--prior-text", type=Path, action="append", help=PRIOR_HELP)
    return made


def _add_protocol(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("how edits come and are measured")
    group.add_argument("--protocol", choices=("stream", "single"), default="stream", help="batches, or one at a time")
    group.add_argument("--batch", type=_positive, default=32, help="edits a batch of a stream")
    group.add_argument("--checkpoint-every", type=_natural, help="edits between checkpoints; 0 for only the end")
    group.add_argument("--sample", type=_positive, default=512, help="active edits asked at a checkpoint on the way")
    group.add_argument("--free-sample", type=_natural, default=256, help="edits that are also asked freely")
    group.add_argument("--rephrases", type=_natural, default=1, help="unseen rephrases of each edit that are measured")
    group.add_argument("--seed", type=int, default=0, help="of every sample")


def _add_editor(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("what edits")
    group.add_argument("--solver", type=_solvers, help=f"one or more of {','.join(SOLVERS)}; several with commas")
    group.add_argument("--editor", type=_editor, action="append", default=[], help=EDITOR_HELP)
    for name in NAMES:
        group.add_argument(_flag(name)[:-1], dest=name, action="append", help="name of a weight; may be repeated")
    for name, kind in CONSTANTS.items():
        group.add_argument(_flag(name), type=kind, help="see EditorSettings")
    for field in fields(FineTuning):
        kind = int if isinstance(field.default, int) else float
        group.add_argument(_flag(f"ft_{field.name}"), type=kind, default=field.default, help="see FineTuning")


def protocol_of(given: argparse.Namespace) -> Protocol:
    """The protocol that is asked for."""
    return Protocol(
        kind=given.protocol,
        batch=1 if given.protocol == "single" else given.batch,
        checkpoint_every=given.checkpoint_every,
        sample=given.sample,
        free_sample=given.free_sample,
        seed=given.seed,
    )


def settings_given(given: argparse.Namespace) -> dict[str, Any]:
    """The settings that flags name."""
    chosen = {name: value for name in CONSTANTS if (value := getattr(given, name)) is not None}
    return chosen | {name: tuple(value) for name in NAMES if (value := getattr(given, name))}


def prior_texts(given: argparse.Namespace) -> list[Path]:
    """The files of the prior: other text than that of the drawdown."""
    return given.prior_text or [FACTS / "prior.txt"]


def fine_tuning_of(given: argparse.Namespace) -> FineTuning:
    """How the baseline is trained."""
    return FineTuning(**{field.name: getattr(given, f"ft_{field.name}") for field in fields(FineTuning)})


def _solvers(text: str) -> tuple[str, ...]:
    """Names with commas between, each once.

    Raises:
        Misconfigured: for a name that is no solver.
    """
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := set(names) - set(SOLVERS):
        raise Misconfigured(f"expected solvers out of {', '.join(SOLVERS)}, got {min(unknown)!r}")
    return names


def _editor(text: str) -> tuple[str | None, Path]:
    solver, has_solver, folder = text.partition("=")
    return (solver, Path(folder)) if has_solver and solver in SOLVERS else (None, Path(text))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _positive(text: str) -> int:
    value = _natural(text)
    if value == 0:
        raise ValueError(text)
    return value
