"""The command line of a training run, and what it says about the objective, the loop and the later use."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from editors.methods.options import (
    PRIOR_TEXT,
    add_base_options,
    add_prior_option,
    add_setting_options,
    add_weight_options,
    flag,
    positive,
)
from editors.models.declared_task import declared_task
from editors.models.digest import base_digest
from editors.training.loop import LoopSettings
from editors.training.mend_objective import MendObjectiveSettings
from editors.training.solved_objective import SolvedSettings
from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.canonical import sha256_file

ObjectiveSettings = SolvedSettings | MendObjectiveSettings
OBJECTIVES: dict[str, type[SolvedSettings] | type[MendObjectiveSettings]] = {
    "recursive": SolvedSettings,
    "mend": MendObjectiveSettings,
    "sum": MendObjectiveSettings,
}
"""Solver -> class with the constants of the objective that trains for it; `sum` is the older word for `mend`."""
LOOPS = {
    "recursive": LoopSettings(num_steps=1000, max_norm=1.0, warmup_steps=20, is_cosine=True),
    "mend": LoopSettings(),
    "sum": LoopSettings(),
}
"""Solver -> settings of the loop, unless told otherwise."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Name -> dtype that the base may compute in."""
USED = (
    "prior_strength",
    "ridge",
    "damping",
    "stop_probability",
    "step",
    "num_passes",
    "trained_passes",
    "rephrase_rows",
)
"""Fields of `EditorSettings` that the card of an editor for `recursive` fixes; training uses the first four too."""
NAMED_OTHERWISE = {"batch": "edits_per_step", "network_lr": "lr"}
"""Constant of an objective -> name of its flag, where that is another."""
SHAPE = ("rank", "held_out", "limit", "dtype", "inner_params", "subject_params")
"""Options that a resume may not change, beside the settings of objective, loop and use."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="corrigenda train",
        description="Trains MEND's transform for a base, with the solver in the loop, into an editor directory.",
        allow_abbrev=False,
    )
    made.add_argument("--data", type=Path, required=True, help="edits to learn from: our JSONL, CounterFact, zsRE ...")
    add_base_options(made, task=None)
    made.add_argument("--out", type=Path, required=True, help="folder of the run; new or empty without --resume")
    made.add_argument("--resume", action="store_true", help="go on with the run in --out")
    made.add_argument("--validation", type=Path, help="edits to validate on; the last of --data if left out")
    made.add_argument("--held-out", type=positive, default=64, help="most edits to validate on")
    made.add_argument("--text", type=Path, default=PRIOR_TEXT, help="plain text that has to stay")
    add_prior_option(made, usual="--text")
    made.add_argument("--limit", type=positive, help="how many of --data from the top")
    made.add_argument("--licence", default="", help="what the data's licences ask for; stands in the card")
    made.add_argument("--threads", type=positive, help="of torch; another number gives other last bits")
    _add_transform(made)
    _add_loop(made)
    _add_constants(made)
    return made


def _add_transform(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("what is trained")
    group.add_argument("--solver", choices=tuple(OBJECTIVES), default="recursive", help="what makes weights of shifts")
    group.add_argument("--rank", type=positive, default=256, help="of the network")
    group.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the base")
    add_weight_options(group)


def _add_loop(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("steps")
    group.add_argument("--steps", type=positive, help="most steps")
    group.add_argument("--patience", type=positive, help="validations without a better score that end the run")
    group.add_argument("--validate-every", type=positive, help="steps between two validations")
    group.add_argument("--save-every", type=positive, help="steps between two states: what a kill can cost")
    group.add_argument("--max-norm", type=float, help="to which the gradient is clipped")
    group.add_argument("--seed", type=int, default=0, help="of the data's order and whatever is drawn")


def _add_constants(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("the objective", "of one solver each; see SolvedSettings and MendObjectiveSettings")
    constants = {field.name: type(field.default) for kind in OBJECTIVES.values() for field in fields(kind)}
    for name, kind in constants.items():
        if name != "seed":
            group.add_argument(_flag(name), dest=name, type=kind, help=f"see {_owners(name)}")
    group = made.add_argument_group("how it will be used", "see EditorSettings")
    add_setting_options(group, USED)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line and fill in what it leaves to the base and to the solver.

    Raises:
        Misconfigured: if the base declares no task, or a constant is not one of the solver's.
    """
    given = parser().parse_args(arguments)
    known = {field.name for field in fields(OBJECTIVES[given.solver])}
    others = [field.name for kind in OBJECTIVES.values() for field in fields(kind) if field.name not in known]
    if wrong := [name for name in others if getattr(given, name) is not None]:
        raise Misconfigured(f"expected constants of the solver {given.solver}, got {_flag(wrong[0])}")
    given.task = given.task or declared_task(given.model)
    given.prior_text = given.prior_text or [given.text]
    return given


def objective_settings(given: argparse.Namespace) -> ObjectiveSettings:
    """Return the constants of the objective: the solver's own, unless the command line says otherwise."""
    kind = OBJECTIVES[given.solver]
    told = {field.name: value for field in fields(kind) if (value := getattr(given, field.name)) is not None}
    return kind(**told)


def loop_settings(given: argparse.Namespace) -> LoopSettings:
    """Return the settings of the loop: the solver's own, unless the command line says otherwise."""
    told = {"num_steps": given.steps, "seed": given.seed}
    told |= {name: getattr(given, name) for name in ("patience", "validate_every", "save_every", "max_norm")}
    usual = asdict(LOOPS[given.solver])
    return LoopSettings(**usual | {name: value for name, value in told.items() if value is not None})


def use_settings(given: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `EditorSettings` that the editor's card will fix."""
    return {name: getattr(given, name) for name in USED} if given.solver == "recursive" else {}


def data_files(given: argparse.Namespace) -> dict[str, Path]:
    """Return the files of a run by what they are used for.

    Raises:
        Misconfigured: if one cannot be read.
    """
    files = {"train": given.data, "validation": given.validation, "text": given.text}
    files |= {f"prior text {place}": path for place, path in enumerate(given.prior_text, start=1)}
    found = {use: path for use, path in files.items() if path is not None}
    for use, path in found.items():
        if not path.is_file():
            raise Misconfigured(f"expected a file for the {use}, got {path}, which is none")
    return found


def run_of(
    given: argparse.Namespace, command: str, versions: dict[str, str], num_ranks: int | None = None
) -> dict[str, Any]:
    """Return what a run is; to be resumed it has to be the same in all but the command's wording and the versions.

    Args:
        given: the command line.
        command: the command as it was typed.
        versions: library -> version.
        num_ranks: how many ranks hold the base together; None for one process that holds it whole.
    """
    data = data_files(given)  # first: reading the base takes long
    settings = {name: getattr(given, name) for name in ("task", "solver", *SHAPE)}
    settings |= {} if num_ranks is None else {"ranks": num_ranks}
    used = use_settings(given)
    # By its first name, so that a run that was begun with it can go on.
    settings |= {"rest" if name == "stop_probability" else name: value for name, value in used.items()}
    settings |= asdict(loop_settings(given)) | asdict(objective_settings(given))
    return {
        "command": command,
        "versions": versions,
        "base_digest": base_digest(given.model),
        "data": {use: sha256_file(path) for use, path in data.items()},
        "settings": settings,
    }


def _owners(name: str) -> str:
    return " and ".join(kind.__name__ for kind in OBJECTIVES.values() if name in {field.name for field in fields(kind)})


def _flag(name: str) -> str:
    return flag(NAMED_OTHERWISE.get(name, name))
