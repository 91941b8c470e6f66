"""The command line of an evaluation, and the protocol, the solvers and the settings that it names."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from editors.evaluation.protocols import Protocol
from editors.methods.fine_tuning import FINE_TUNING_RANGES, FineTuning
from editors.methods.folding import FOLDING_RANGES, Folding
from editors.methods.options import (
    DEFAULTS,
    FACTS,
    PRIOR_TEXT,
    WEIGHTS,
    add_base_options,
    add_prior_option,
    add_setting_options,
    add_weight_options,
    flag,
    natural,
    number,
    positive,
)
from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.ranges import SEED, Range

DEVICE = "cpu"
"""Where one process edits the model, unless told otherwise."""
GATE = 0.8
"""Least cosine at which a gated lookup opens, unless told otherwise."""
NOT_CONSTANTS = ("solver", "transform", "batch_size")
"""Settings that are asked for by another name: `--solver`, `--editor`, `--batch`."""
CONSTANTS = tuple(
    name for name, usual in DEFAULTS.items() if type(usual) in (int, float, str) and name not in NOT_CONSTANTS
)
"""Settings that a flag of the same name changes."""
SOLVERS = ("recursive", "least_squares", "row_sum", "mend", "sum", "ft", "gated", "context", "bm25")
"""What `--solver` may name. Baselines: `ft` is fine-tuning; `gated` looks edits up by their keys; `context` puts an
edit's own fact before what is asked of it, and `bm25` the fact that is most like the prompt."""
GATE_HELP = f"least cosine of keys from which the solver `gated` adds an edit's shift; {GATE} if left out"
REPHRASES_HELP = "unseen rephrases of each edit that are measured, of each class; 2 or 3 if left out"
FOLD_HELP = "at the end of a stream, fold its edits into the base, as `corrigenda lineage fold` does, and ask once more"
UNSEEN_HELP = "keep questions, chats and their answers from the editor, so that they are only asked"
JSON_HELP = "file for the figures; - prints them, as without --out"
OUT_HELP = (
    "folder for figures.json and curves.png; complete figures that are there stay until the new ones are complete, "
    "which are in figures.part.json until then"
)
EDITOR_HELP = "folder of a trained editor, or SOLVER=FOLDER for one solver; the natural gradient alone if left out"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="corrigenda evaluate",
        description="Measures editors on edits to a fresh base: a stream of batches, or one edit at a time.",
        allow_abbrev=False,
    )
    made.add_argument("--data", type=Path, required=True, help="edits: our JSONL, CounterFact, zsRE, EasyEdit")
    made.add_argument("--edits", type=positive, required=True, help="how many from the top")
    add_base_options(made, task="causal")
    made.add_argument(
        "--device", default=DEVICE, help="where the model is edited: cpu, cuda or cuda:0; cpu if left out"
    )
    made.add_argument("--json", help=JSON_HELP)
    made.add_argument("--out", type=Path, help=OUT_HELP)
    _add_protocol(made)
    _add_editor(made)
    made.add_argument("--text", type=Path, default=FACTS / "perplexity.txt", help="plain text for drawdown")
    made.add_argument("--suite", type=Path, help="probes with targets, for the drawdown of a seq2seq or a classifier")
    add_prior_option(made, usual="the project's own")
    return made


def _add_protocol(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("how edits come and are measured")
    group.add_argument("--protocol", choices=("stream", "single"), default="stream", help="batches, or one at a time")
    group.add_argument("--batch", type=positive, default=32, help="edits a batch of a stream")
    group.add_argument("--checkpoint-every", type=natural, help="edits between checkpoints; 0 for only the end")
    group.add_argument("--sample", type=positive, default=512, help="active edits asked at a checkpoint on the way")
    group.add_argument("--free-sample", type=natural, default=256, help="edits that are also asked freely")
    group.add_argument("--rephrases", type=natural, help=REPHRASES_HELP)
    group.add_argument("--unseen-questions", action="store_true", help=UNSEEN_HELP)
    group.add_argument("--fold", action="store_true", help=FOLD_HELP)
    group.add_argument("--seed", type=number(SEED), default=0, help="of every sample")


def _add_editor(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("what edits")
    group.add_argument("--solver", type=_solvers, help=f"one or more of {','.join(SOLVERS)}; several with commas")
    group.add_argument("--editor", type=_editor, action="append", default=[], help=EDITOR_HELP)
    add_weight_options(group)
    add_setting_options(group, CONSTANTS)
    group.add_argument("--gate", type=number(Range(is_above=True, most=1)), default=GATE, help=GATE_HELP)
    for prefix, constants, ranges in (("ft", FineTuning, FINE_TUNING_RANGES), ("fold", Folding, FOLDING_RANGES)):
        for field in fields(constants):
            read, words = number(ranges[field.name]), f"see {constants.__name__}"
            group.add_argument(flag(f"{prefix}_{field.name}"), type=read, default=field.default, help=words)


def protocol_of(given: argparse.Namespace) -> Protocol:
    """Return the protocol that a command line asks for; single edits are batches of one."""
    return Protocol(
        kind=given.protocol,
        batch=1 if given.protocol == "single" else given.batch,
        checkpoint_every=given.checkpoint_every,
        sample=given.sample,
        free_sample=given.free_sample,
        seed=given.seed,
    )


def settings_given(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that flags name; all others are left to the editor."""
    chosen = {name: value for name in CONSTANTS if (value := getattr(given, name)) is not None}
    return chosen | {name: tuple(value) for name in WEIGHTS if (value := getattr(given, name))}


def prior_texts(given: argparse.Namespace) -> list[Path]:
    """Return the files of the prior, which are other text than that of the drawdown."""
    return given.prior_text or [PRIOR_TEXT]


def fine_tuning_of(given: argparse.Namespace) -> FineTuning:
    """Return how fine-tuning, the baseline, is trained."""
    return FineTuning(**{field.name: getattr(given, f"ft_{field.name}") for field in fields(FineTuning)})


def folding_of(given: argparse.Namespace) -> Folding | None:
    """Return how the edits of a stream are folded at its end; None where they are not."""
    if not given.fold:
        return None
    if given.protocol == "single":
        raise Misconfigured("expected a stream to fold, got the protocol single")
    return Folding(**{field.name: getattr(given, f"fold_{field.name}") for field in fields(Folding)})


def _solvers(text: str) -> tuple[str, ...]:
    """Read names with commas between, each once."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := set(names) - set(SOLVERS):
        raise Misconfigured(f"expected solvers out of {', '.join(SOLVERS)}, got {min(unknown)!r}")
    return names


def _editor(text: str) -> tuple[str | None, Path]:
    solver, has_solver, folder = text.partition("=")
    return (solver, Path(folder)) if has_solver and solver in SOLVERS else (None, Path(text))
