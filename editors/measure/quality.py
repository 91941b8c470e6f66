"""How well a model does at large, in one figure, and what that is measured on.

For a causal model it is the perplexity of plain text; for an encoder with a decoder that of the targets that a suite of
probes gives; for a classifier the accuracy on such a suite. What is lost of it is the drawdown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

from editors.measure.scoring import Prepared, Score, prepare
from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from pipeline.domain.edits import Probe
from pipeline.domain.errors import Misconfigured
from pipeline.domain.measurements import share

WINDOW_TOKENS = 128
"""Length of a window of plain text, where the model has so many positions; its first token is given."""
CHUNK_TOKENS = 512
"""Most positions whose logits are held at once: a window has many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityProbe:
    """One sequence that the figure is measured on."""

    sequence: Encoded
    """Prompt and target; the target is scored."""
    place: int | None = None
    """Which probe of the suite it comes from; None for plain text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """How well a model does at large: one of the two, as its family has it; neither where nothing was asked."""

    perplexity: float | None = None
    """exp of the mean negative log-probability of every token that was scored; infinite where it overflows."""
    accuracy: float | None = None
    """Share of targets that are the most probable label."""

    @classmethod
    def of(cls, model: EditableModel, scores: Sequence[Score]) -> Self:
        """Return the figure of a model's family, from the scores of quality probes."""
        if model.drawdown_by == "accuracy":
            return cls(accuracy=share(score.is_hit for score in scores))
        return cls(perplexity=perplexity(scores) if scores else None)

    def drawdown(self, base: Figure) -> float | None:
        """Return what was lost since the base: perplexity over the base's minus 1, or the accuracy that is gone.

        None where the two are not of the same kind, or nothing was asked.
        """
        if self.accuracy is not None and base.accuracy is not None:
            return base.accuracy - self.accuracy
        if self.perplexity is not None and base.perplexity is not None:
            return self.perplexity / base.perplexity - 1
        return None


def quality_probes(
    model: EditableModel, suite: Sequence[Probe], text: str, *, num_windows: int
) -> tuple[QualityProbe, ...]:
    """Return what the figure of a model's family is measured on.

    Args:
        model: how a sequence is written, and which figure is asked.
        suite: probes; of these, those with a target count.
        text: plain text; not read where the family has no use for it.
        num_windows: how much of it is read at most.

    Raises:
        Misconfigured: if there is nothing to measure the figure on.
        InvalidInput: if the model could never give a probe's target.
    """
    if model.drawdown_on == "text":
        return tuple(QualityProbe(sequence=window) for window in _windows(model, text, num_windows))
    found = tuple(
        QualityProbe(sequence=model.encode_pair(probe.prompt, probe.target), place=place)
        for place, probe in enumerate(suite)
        if probe.target is not None
    )
    if not found:
        raise Misconfigured(f"expected a suite with targets for the {model.drawdown_by} of a {model.task}, got none")
    return found


def prepared_quality(model: EditableModel, found: Sequence[QualityProbe]) -> Prepared:
    """Return quality probes ready for `scoring.scores`."""
    return prepare(model, [probe.sequence for probe in found], max_tokens=CHUNK_TOKENS)


def chosen(found: Sequence[QualityProbe], scores: Sequence[Score], asked: Collection[int]) -> list[Score]:
    """Return the scores that count when only some places of the suite are asked; plain text always counts."""
    return [score for probe, score in zip(found, scores, strict=True) if probe.place is None or probe.place in asked]


def perplexity(scores: Sequence[Score]) -> float:
    """Return exp of the mean negative log-probability over all tokens; infinity where that overflows."""
    num_tokens = sum(len(score.hits) for score in scores)
    try:
        return math.exp(-sum(score.mean_log_probability * len(score.hits) for score in scores) / num_tokens)
    except OverflowError:
        return math.inf


def _windows(model: EditableModel, text: str, num_windows: int) -> list[Encoded]:
    ids, length = model.encode_raw(text), min(WINDOW_TOKENS, model.max_positions or WINDOW_TOKENS)
    cut = [ids[start : start + length] for start in range(0, len(ids), length)]
    windows = [window for window in cut[:num_windows] if len(window) > 1]
    if not windows:
        raise Misconfigured("expected plain text of at least two tokens for perplexity, got none")
    return [Encoded(prompt_ids=window[:1], target_ids=window[1:]) for window in windows]
