"""In every family: a model that was taught facts, and a transform that was trained for it. What it asks for holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import pytest

from editors.mend.checkpoint import TrainedEditor
from editors.methods.base import EditJob
from editors.methods.mend_sum import MendSumEditor
from editors.methods.select import editor_for, learnt_settings, lineage_settings
from editors.models.digest import base_digest
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior, measure_prior
from editors.weights.deltas import PlainWeights
from pipeline.domain.edits import Edit
from pipeline.domain.rank_api import EditorSettings
from tests.support.scored import score_pairs
from tests.support.taught import FACTS, PUPILS, load_pupil, questions, sentences
from tests.support.taught_editors import UNSEEN, changes, train_published_editor

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
    model = load_pupil(kind, taught(kind), settings.inner_params)
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
        result = editor.edit(EditJob(model=model, weights=weights, ledger=ledger, added=batch))
        weights.apply(result.delta)
        ledger.commit(result.rows, result.removed_ids)

    assert share(model, asked) >= 0.9
    assert share(model, rephrased) >= 0.6
    assert share(model, stays) >= 0.75


def test_mend_as_published_learns_to_make_single_edits(taught: Callable[[str], Path], tmp_path: Path) -> None:
    base, found = taught("llama"), {}
    for num_steps in (0, 60):
        trained = TrainedEditor.load(
            train_published_editor("llama", base, tmp_path / str(num_steps), num_steps=num_steps), base_digest(base)
        )
        settings = EditorSettings(**learnt_settings(trained))
        model = load_pupil("llama", base, settings.inner_params)
        weights = PlainWeights(model.module, model.inner)
        ledger = Ledger(Prior(moments={}, num_tokens=0), strength=1.0, ridge=1.0)
        editor, untouched = MendSumEditor(trained.transform), weights.save()
        shares = []
        for edit in changes(UNSEEN, task="causal"):
            weights.apply(editor.edit(EditJob(model=model, weights=weights, ledger=ledger, added=[edit])).delta)
            asked = [(prompt, edit.request.target_new) for prompt in (edit.request.prompt, edit.request.rephrases[0])]
            stays = [pair for fact in STAYING for pair in questions(fact, fact.value, task="causal")]
            shares.append([share(model, [pair]) for pair in asked] + [share(model, stays)])
            weights.restore(untouched)
        found[num_steps] = [fmean(figures) for figures in zip(*shares, strict=True)]
    assert max(found[0][:2]) <= 0.2
    assert min(found[60]) >= 0.85, "edits, rephrases, and what stays"
