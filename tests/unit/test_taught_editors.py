"""In every family: a model that was taught facts, and a transform that was trained for it. What it asks for holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from editors.deltas import PlainWeights
from editors.families import EditableModel
from editors.ledger import Ledger
from editors.loading import load_base
from editors.metrics import score_pairs
from editors.prior import measure_prior
from editors.selection import editor_for, lineage_settings
from editors.trained import TrainedEditor
from pipeline.domain.edits import Edit
from tests.taught import FACTS, PUPILS, questions, sentences
from tests.taught_editors import UNSEEN, changes

BATCH = 10
STAYING = tuple(fact for fact in FACTS if fact not in UNSEEN)


def share(model: EditableModel, pairs: Sequence[tuple[str, str]]) -> float:
    """Of the answers that are right at every token."""
    return sum(score.is_hit for score in score_pairs(model, pairs)) / len(pairs)


@pytest.mark.parametrize("kind", PUPILS)
def test_edits_of_people_it_never_saw_land_and_rephrases_follow_and_other_facts_stay(
    kind: str, taught: Callable[[str], Path], taught_editor: Callable[[str], Path]
) -> None:
    trained, task = TrainedEditor.load(taught_editor(kind)), PUPILS[kind].task
    assert trained.card.num_steps > 0, "a step was better than the start"
    settings = lineage_settings(trained, task=task)
    model = load_base(taught(kind), settings.inner_params, task=task)
    weights = PlainWeights(model.module, model.inner)
    ledger = Ledger(measure_prior(model, sentences(FACTS)), strength=settings.prior_strength, ridge=settings.ridge)
    editor, edits = editor_for(settings, trained.transform), changes(UNSEEN, task=task)
    asked = [(edit.request.prompt, edit.request.target_new) for edit in edits]
    # The first rephrase of a request is never an edit row.
    rephrased = [(edit.request.rephrases[0], edit.request.target_new) for edit in edits]
    stays = [pair for fact in STAYING for pair in questions(fact, fact.value, task=task)]
    assert share(model, asked) <= 0.2

    for start in range(0, len(edits), BATCH):
        batch: Sequence[Edit] = edits[start : start + BATCH]
        result = editor.edit(model, weights, ledger, batch, ())
        weights.apply(result.delta)
        ledger.commit(result.rows, result.removed_ids)

    assert share(model, asked) >= 0.9
    assert share(model, rephrased) >= 0.6
    assert share(model, stays) >= 0.75
