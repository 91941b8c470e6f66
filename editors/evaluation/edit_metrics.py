"""Knows what is measured of one edit, and the average over many; the definitions are here. Knows no model.

`edit_success`: teacher-forced, every target token is the argmax after the edit's prompt. `generalization` and
`portability`: the same on rephrases that are no edit rows, and on one-hop consequences. Under `greedy` and `chat` the
same by free generation, raw and in the chat template (see `answers.confirms`). `token_fraction` is the share of target
tokens that are the argmax (EasyEdit's rewrite accuracy), `prefers_new` the share with P(new) > P(true), geometric means
over the tokens (ROME's efficacy and paraphrase scores), `neighbourhood` the share of neighbours with P(true) > P(new).
`locality_unchanged` is the share of neighbours whose every argmax along the base's own answer is the base's;
`locality_kl` the mean KL from the base there, nats. `score` is the harmonic mean of ROME's three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean
from typing import Any

from pipeline.domain.measurements import share


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """How the model takes to a target after one prompt."""

    is_success: bool
    """Every target token is the argmax."""
    token_fraction: float
    """Share of target tokens that are."""
    prefers_new: bool | None = None
    """P(new) > P(true); None where there is no true target, or it was not asked."""
    is_free: bool | None = None
    """Free generation says the target; None where it was not asked."""
    is_free_in_chat: bool | None = None
    """The same in the chat template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """What became of one locality probe."""

    is_unchanged: bool
    """Every argmax along the base's answer is the base's."""
    kl: float
    """Mean KL from the base there, nats."""
    prefers_true: bool | None = None
    """P(true) > P(new) of the edit; None where no true answer is given, or it was not asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditFigures:
    """Everything that was measured of one edit."""

    edit_id: str
    """Which."""
    own: Followed
    """After its own prompt."""
    rephrases: tuple[Followed, ...] = ()
    """After rephrases that are no edit rows."""
    portability: tuple[Followed, ...] = ()
    """One-hop consequences."""
    neighbours: tuple[Neighbour, ...] = ()
    """Its locality probes."""


def averaged(figures: Sequence[EditFigures]) -> dict[str, Any]:
    """The figures of many edits; None where nothing was asked, and how many of each were."""
    own = [item.own for item in figures]
    rephrased = [asked for item in figures for asked in item.rephrases]
    ported = [asked for item in figures for asked in item.portability]
    neighbours = [neighbour for item in figures for neighbour in item.neighbours]
    scores = {
        "prefers_new": _share(asked.prefers_new for asked in own),
        "generalization_prefers_new": _share(asked.prefers_new for asked in rephrased),
        "neighbourhood": _share(neighbour.prefers_true for neighbour in neighbours),
    }
    return {
        "edit_success": share(asked.is_success for asked in own),
        "generalization": share(asked.is_success for asked in rephrased),
        "portability": share(asked.is_success for asked in ported),
        "locality_unchanged": share(neighbour.is_unchanged for neighbour in neighbours),
        "locality_kl": mean(neighbour.kl for neighbour in neighbours),
        "token_fraction": mean(asked.token_fraction for asked in own),
        "generalization_token_fraction": mean(asked.token_fraction for asked in rephrased),
        **scores,
        "score": harmonic(scores.values()),
        "greedy": _by_part(own, rephrased, ported, "is_free"),
        "chat": _by_part(own, rephrased, ported, "is_free_in_chat"),
        "measured": {
            "edits": len(own),
            "rephrases": len(rephrased),
            "portability": len(ported),
            "neighbours": len(neighbours),
            "preferences": _count(asked.prefers_new for asked in own),
            "greedy": _count(asked.is_free for asked in own),
            "chat": _count(asked.is_free_in_chat for asked in own),
        },
    }


def harmonic(shares: Iterable[float | None]) -> float | None:
    """The harmonic mean, 0 if one is 0; None if one is missing."""
    given = list(shares)
    known = [value for value in given if value is not None]
    return harmonic_mean(known) if known and len(known) == len(given) else None


def _by_part(
    own: Sequence[Followed], rephrased: Sequence[Followed], ported: Sequence[Followed], name: str
) -> dict[str, float | None]:
    parts = {"edit_success": own, "generalization": rephrased, "portability": ported}
    return {part: _share(getattr(asked, name) for asked in asks) for part, asks in parts.items()}


def _share(flags: Iterable[bool | None]) -> float | None:
    return share(flag for flag in flags if flag is not None)


def _count(flags: Iterable[bool | None]) -> int:
    return sum(flag is not None for flag in flags)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured; None of nothing."""
    found = [value for value in values if value is not None]
    return fmean(found) if found else None
