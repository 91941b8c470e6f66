"""What an evaluation reads beside the base, all of it before the base is loaded, which takes minutes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from editors.data.datasets import prior_lines, prior_subjects, read_edits, read_suite, read_text
from editors.evaluation.arguments import prior_texts
from editors.models.families import family_of
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import Misconfigured


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The content of the files that a command line names."""

    asked: Sequence[Edit]
    """The edits with all that is asked of them."""
    text: str
    """Plain text for the drawdown."""
    suite: Sequence[Probe] | None
    """Probes for the drawdown of a family that has no use for text; None for the edits' own."""
    prior: Sequence[Sequence[str]]
    """Lines of each text that the prior is measured over."""
    subjects: Sequence[tuple[str, str]]
    """Prompts of these texts with the subjects that they name."""


def read_inputs(given: argparse.Namespace) -> Inputs:
    """Read every file that a command line names.

    Raises:
        Misconfigured: if one cannot be read or holds nothing, or there is no such task.
    """
    texts, text = prior_texts(given), read_text(given.text)
    if family_of(given.task).drawdown_on == "text" and not text.strip():
        raise Misconfigured(f"expected plain text for --text, got {given.text} without any")
    return Inputs(
        asked=read_edits(given.data, limit=given.edits),
        text=text,
        suite=[item.probe for item in read_suite(given.suite)] if given.suite else None,
        prior=[_lines(path) for path in texts],
        subjects=prior_subjects(texts),
    )


def _lines(path: Path) -> list[str]:
    lines = prior_lines(path)
    if not any(line.strip() for line in lines):
        raise Misconfigured(f"expected at least one line of text for --prior-text, got {path} without any")
    return lines
