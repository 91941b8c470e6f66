"""The command line of a training run, and what it says about the objective, the loop and the later use."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from editors.methods.options import (
    DEFAULTS,
    PRIOR_TEXT,
    add_base_options,
    add_prior_option,
    add_setting_options,
    add_weight_options,
    flag,
    number,
    positive,
)
from editors.methods.select import require_inner
from editors.models.declared_task import declared_task
from editors.models.digest import base_digest
from editors.models.families import family_of
from editors.training.framed_objective import FramedSettings
from editors.training.loop import LoopSettings
from editors.training.mend_objective import MendObjectiveSettings
from editors.training.solved_objective import SolvedSettings
from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.formats.ranges import SEED, Range

ObjectiveSettings = FramedSettings | SolvedSettings | MendObjectiveSettings
SOLVERS = ("recursive", "mend", "sum")
"""What makes weights of shifts; `sum` is the older word for `mend`."""
FRAMED, ONE_ROW, PUBLISHED = "framed", "one row", "published"
"""Objectives: for `recursive` with frames, for `recursive` with one row an edit, and for `mend`."""
OBJECTIVES: dict[str, type[FramedSettings] | type[SolvedSettings] | type[MendObjectiveSettings]] = {
    FRAMED: FramedSettings,
    ONE_ROW: SolvedSettings,
    PUBLISHED: MendObjectiveSettings,
}
"""Objective -> class with its constants."""
LOOPS = {
    FRAMED: LoopSettings(
        num_steps=2000, validate_every=100, save_every=100, max_norm=1.0, warmup_steps=20, is_cosine=True
    ),
    ONE_ROW: LoopSettings(num_steps=1000, max_norm=1.0, warmup_steps=20, is_cosine=True),
    PUBLISHED: LoopSettings(),
}
"""Objective -> settings of the loop, unless told otherwise."""
FRAMED_PASSES = 3
"""Passes that an editor with frames is trained for, unless told otherwise."""
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
    "frames_per_pass",
    "num_guards",
)
"""Fields of `EditorSettings` that the card of an editor for `recursive` fixes."""
NAMED_OTHERWISE = {"batch": "edits_per_step", "network_lr": "lr", "subject_params": "subject_param"}
"""Constant of an objective, or option -> name of its flag, where that is another."""
COUNT, WEIGHT = Range(most=1_000_000, is_whole=True), Range(most=1e6)
RANGES = {
    **dict.fromkeys(("c_edit", "c_earlier", "c_loc", "c_text", "c_norm", "max_text_kl"), WEIGHT),
    **dict.fromkeys(("network_lr", "rate_lr", "share_edited"), Range(most=1)),
    **dict.fromkeys(("boost", "first_step"), Range(is_above=True, most=1e6)),
    **dict.fromkeys(("batch", "stream_steps", "num_calibration"), replace(COUNT, least=1)),
    **dict.fromkeys(("num_views", "num_earlier", "num_text"), COUNT),
    **dict.fromkeys(("cache_bytes", "disk_bytes"), Range(is_whole=True)),
}
"""Number among the constants of objectives -> what it may be."""
MAX_RANK = 65_536
"""Largest rank: none is of use that is above the width of a pair."""
THREADS_EACH = 8
"""Most threads for each core: a run of a larger machine can go on to the same bytes, and torch does not break."""
SHAPE = ("rank", "held_out", "limit", "dtype", "inner_params", "subject_params", "new_relations")
"""Options that a resume may not change, beside the settings of objective, loop and use."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="corrigenda train",
        description="Trains MEND's transform for a base, with the solver in the loop, into an editor directory.",
        allow_abbrev=False,
    )
    words = "edits to learn from: our JSONL, CounterFact, zsRE ...; may be repeated"
    made.add_argument("--data", type=Path, action="append", required=True, help=words)
    add_base_options(made, task=None)
    made.add_argument("--out", type=Path, required=True, help="folder of the run; new or empty without --resume")
    made.add_argument("--resume", action="store_true", help="go on with the run in --out")
    made.add_argument("--validation", type=Path, help="edits to validate on; the last of --data if left out")
    made.add_argument("--held-out", type=positive, default=64, help="most edits to validate on")
    made.add_argument("--text", type=Path, default=PRIOR_TEXT, help="plain text that has to stay")
    add_prior_option(made, usual="--text")
    made.add_argument("--limit", type=positive, help="how many of each --data from the top")
    words = "a relation that is validated on and never learnt from; may be repeated"
    made.add_argument("--new-relation", dest="new_relations", action="append", default=[], help=words)
    words = "file of the edits as tokens, with frames: made if it is not there, so that a later run need not"
    made.add_argument("--prepared", type=Path, help=words)
    made.add_argument("--only-prepare", action="store_true", help="make the file of --prepared and end")
    made.add_argument("--device", help="where to train: cpu, cuda or cuda:0; cpu if left out, with --ranks their own")
    made.add_argument("--licence", default="", help="what the data's licences ask for; stands in the card")
    threads = Range(least=1, most=THREADS_EACH * (os.cpu_count() or 1), is_whole=True)
    made.add_argument("--threads", type=number(threads), help="of torch; another number gives other last bits")
    _add_transform(made)
    _add_loop(made)
    _add_constants(made)
    return made


def _add_transform(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("what is trained")
    group.add_argument("--solver", choices=SOLVERS, default="recursive", help="what makes weights of shifts")
    group.add_argument(
        "--rank", type=number(Range(least=1, most=MAX_RANK, is_whole=True)), default=256, help="of the network"
    )
    group.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the base")
    add_weight_options(group)


def _add_loop(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("steps")
    group.add_argument("--steps", type=positive, help="most steps")
    words = "time after which the run ends, with its validations; then no two runs have the same bytes"
    group.add_argument("--minutes", type=number(Range(is_above=True)), help=words)
    group.add_argument("--patience", type=positive, help="validations without a better score that end the run")
    group.add_argument("--validate-every", type=positive, help="steps between two validations")
    group.add_argument("--save-every", type=positive, help="steps between two states: what a kill can cost")
    group.add_argument("--max-norm", type=number(Range(is_above=True)), help="to which the gradient is clipped")
    group.add_argument("--seed", type=number(SEED), default=0, help="of the data's order and whatever is drawn")


def _add_constants(made: argparse.ArgumentParser) -> None:
    owners = "FramedSettings, SolvedSettings (--frames-per-pass 0) and MendObjectiveSettings (--solver mend)"
    group = made.add_argument_group("the objective", f"see {owners}")
    constants = dict.fromkeys(
        field.name for kind in OBJECTIVES.values() for field in fields(kind) if field.name != "seed"
    )
    for name in constants:
        read = number(RANGES[name]) if name in RANGES else str
        group.add_argument(_flag(name), dest=name, type=read, help=f"see {_owners(name)}")
    group = made.add_argument_group("how it will be used", "see EditorSettings")
    add_setting_options(group, USED)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line and fill in what it leaves to the base and to the solver.

    Raises:
        Misconfigured: if the base declares no task or there is none of that name, or an option is of no effect here.
    """
    given = parser().parse_args(arguments)
    given.task = given.task or declared_task(given.model)
    family_of(given.task)
    # MEND as published is not solved, and its edits have no subject.
    of_solve = () if given.solver == "recursive" else (*USED, "subject_params", "prior_text")
    wrong = [name for name in of_solve if getattr(given, name) not in (None, [])]
    if given.inner_params:
        require_inner(given.subject_params, given.inner_params)
    _fill(given)
    objective = objective_of(given)
    known = {field.name for field in fields(OBJECTIVES[objective])}
    others = [field.name for kind in OBJECTIVES.values() for field in fields(kind) if field.name not in known]
    if wrong := [name for name in others if getattr(given, name) is not None] + wrong:
        how = {FRAMED: " with frames (--frames-per-pass 0 trains for one row an edit)", ONE_ROW: " without frames"}
        raise Misconfigured(
            f"expected constants of the solver {given.solver}{how.get(objective, '')}, got {_flag(wrong[0])}"
        )
    _check_framed(given)
    if given.prepared is not None and objective != FRAMED:
        raise Misconfigured("expected --prepared for an editor with frames only, got one without")
    given.prior_text = given.prior_text or [given.text]
    return given


def objective_of(given: argparse.Namespace) -> str:
    """Return which objective trains: of an editor for `recursive` it depends on whether edits have frames."""
    if given.solver != "recursive":
        return PUBLISHED
    return FRAMED if given.frames_per_pass else ONE_ROW


def _fill(given: argparse.Namespace) -> None:
    """Fill in the later use: decoders are edited in frames, and one that is trained for frames asks all passes."""
    has_frames = given.task == "causal" if given.frames_per_pass is None else given.frames_per_pass > 0
    usual = {name: DEFAULTS[name] for name in USED}
    usual |= (
        {"num_passes": FRAMED_PASSES, "trained_passes": given.num_passes or FRAMED_PASSES}
        if has_frames
        else {"frames_per_pass": 0, "num_guards": 0}
    )
    for name in USED:
        if getattr(given, name) is None:
            setattr(given, name, usual[name])


def _check_framed(given: argparse.Namespace) -> None:
    """Refuse what an objective with frames cannot be told.

    States and validations have to come where a stream begins: a resume would not find the same weights elsewhere.
    """
    settings, loop = objective_settings(given), loop_settings(given)
    if not isinstance(settings, FramedSettings):
        return
    for name in ("validate_every", "save_every"):
        if (found := getattr(loop, name)) % settings.stream_steps:
            raise Misconfigured(
                f"expected {flag(name)} in multiples of --stream-steps, {settings.stream_steps}, got {found}"
            )
    if settings.forward_dtype not in DTYPES:
        raise Misconfigured(f"expected --forward-dtype, one of {', '.join(DTYPES)}; got {settings.forward_dtype!r}")
    if not 1 <= given.trained_passes <= given.num_passes:
        raise Misconfigured(
            f"expected --trained-passes from 1 to --num-passes, {given.num_passes}, got {given.trained_passes}"
        )


def objective_settings(given: argparse.Namespace) -> ObjectiveSettings:
    """Return the constants of the objective: the solver's own, unless the command line says otherwise."""
    kind = OBJECTIVES[objective_of(given)]
    told = {field.name: value for field in fields(kind) if (value := getattr(given, field.name)) is not None}
    return kind(**told)


def loop_settings(given: argparse.Namespace) -> LoopSettings:
    """Return the settings of the loop: the solver's own, unless the command line says otherwise."""
    told = {"num_steps": given.steps, "seed": given.seed}
    told |= {name: getattr(given, name) for name in ("patience", "validate_every", "save_every", "max_norm", "minutes")}
    usual = asdict(LOOPS[objective_of(given)])
    return LoopSettings(**usual | {name: value for name, value in told.items() if value is not None})


def use_settings(given: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `EditorSettings` that the editor's card will fix."""
    return {name: getattr(given, name) for name in USED} if given.solver == "recursive" else {}


def data_files(given: argparse.Namespace) -> dict[str, Path]:
    """Return the files of a run by what they are used for.

    Raises:
        Misconfigured: if one cannot be read.
    """
    first, *others = given.data
    files = {"train": first, "validation": given.validation, "text": given.text}
    files |= {f"train {place}": path for place, path in enumerate(others, start=2)}
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
