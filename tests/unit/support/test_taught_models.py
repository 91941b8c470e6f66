"""The small models that other tests edit know what they were taught, in every wording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from editors.weights.loading import load_base
from tests.support.scored import score_pairs
from tests.support.taught import FACTS, PUPILS, load_pupil, questions


@pytest.mark.parametrize("kind", PUPILS)
def test_a_pupil_knows_every_fact_in_every_wording(kind: str, taught: Callable[[str], Path]) -> None:
    task = PUPILS[kind].task
    model = load_pupil(kind, taught(kind))
    asked = [pair for fact in FACTS for pair in questions(fact, fact.value, task=task)]
    hits = [score.is_hit for score in score_pairs(model, asked)]
    assert sum(hits) >= 0.98 * len(hits)


def test_a_fact_checker_denies_what_is_false(taught: Callable[[str], Path]) -> None:
    model = load_base(taught("bert"), task="classifier")
    claims = [(f"{prompt} {value}", "false") for fact in FACTS for value in fact.others for prompt in fact.prompts]
    hits = [score.is_hit for score in score_pairs(model, claims)]
    assert sum(hits) >= 0.95 * len(hits)
