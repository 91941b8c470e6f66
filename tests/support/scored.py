"""Teacher-forced scores of prompts and targets by a plain pass, without anything that the product keeps."""

from __future__ import annotations

from collections.abc import Sequence

from editors.measure.scoring import Score, scores
from editors.models.families import EditableModel, Pair


def score_pairs(model: EditableModel, pairs: Sequence[Pair]) -> list[Score]:
    """Return the score of each prompt with its target, in order."""
    return scores(model, list(model.chunked([model.encode_pair(prompt, target) for prompt, target in pairs])))
