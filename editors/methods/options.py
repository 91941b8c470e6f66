"""Command-line options that several programs of `editors` take, each declared once.

    parser = argparse.ArgumentParser()
    add_base_options(parser, task=None)
    add_weight_options(parser)
    add_setting_options(parser, ("ridge", "step"))

Importing this loads no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.ranges import Range
from pipeline.domain.rank_api import RANGES, EditorSettings

FACTS = Path(__file__).resolve().parents[2] / "infra" / "local" / "facts"
"""Where the project's own plain texts are in a checkout."""
PRIOR_TEXT = FACTS / "prior.txt"
"""The text that a prior is measured over unless another is named."""
WEIGHTS = ("inner_params", "subject_params")
"""Settings that are names of weights: a flag without the plural's s, given once for each."""
DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(EditorSettings)}
"""Setting of an editor -> its default."""


def add_base_options(parser: argparse.ArgumentParser, *, task: str | None) -> None:
    """Add `--model` and `--task`; the task is what the base's config declares where its default is empty."""
    usual = task or "what the base declares"
    parser.add_argument("--model", type=Path, required=True, help="folder of the base")
    parser.add_argument("--task", default=task, help=f"causal, seq2seq or classifier; {usual} if left out")


def add_prior_option(parser: argparse.ArgumentParser, *, usual: str | None) -> None:
    """Add `--prior-text`, which is required where there is nothing that is usual."""
    words = "lines, or edits (.json, .jsonl or JSON in line 1), that the prior is of; several files count alike"
    parser.add_argument(
        "--prior-text",
        type=Path,
        action="append",
        required=usual is None,
        help=words if usual is None else f"{words}; {usual} if left out",
    )


def add_weight_options(group: argparse._ActionsContainer) -> None:
    """Add `--inner-param` and `--subject-param`, lists of names under `inner_params` and `subject_params`."""
    helps = ("name of a weight to edit", "an --inner-param whose edit rows are subject tokens")
    for name, words in zip(WEIGHTS, helps, strict=True):
        group.add_argument(flag(name)[:-1], dest=name, action="append", default=[], help=f"{words}; may be repeated")


FORMER = {"stop_probability": ("--rest",)}
"""Settings that had another flag once, which is still understood."""


def add_setting_options(group: argparse._ActionsContainer, names: Iterable[str]) -> None:
    """Add a flag for each setting of an editor that is named; left out, it is None, which every program fills in."""
    for name in names:
        words = f"see EditorSettings; {DEFAULTS[name]} there"
        group.add_argument(flag(name), *FORMER.get(name, ()), dest=name, type=number(RANGES[name]), help=words)


def flag(name: str) -> str:
    """Return a field's name as it stands on a command line."""
    return f"--{name.replace('_', '-')}"


def number(within: Range) -> Callable[[str], Any]:
    """Return what reads a number of a range, as a `type` of argparse; another is refused by what was expected."""

    def read(text: str) -> float:
        try:
            return within.read(text)
        except InvalidInput as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


natural = number(Range(most=1_000_000_000, is_whole=True))
"""Reads a number of things of which there may be none."""
positive = number(Range(least=1, most=1_000_000_000, is_whole=True))
"""Reads a number of things of which there has to be one."""
