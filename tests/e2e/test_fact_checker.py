"""BERT as a fact checker, as the paper has it on FEVER: a real encoder, a trained head, verdicts that are edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from editors.mend.checkpoint import TrainedEditor
from editors.methods.base import EditJob
from editors.methods.select import editor_for, lineage_settings
from editors.models.digest import base_digest
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.prior import measure_prior
from editors.training.examples import Examples, make_examples
from editors.weights.deltas import PlainWeights
from editors.weights.loading import load_base
from tests.support import taught_editors
from tests.support.claims import CAPITALS, change, teach_fact_checker, true_and_false, verdicts
from tests.support.scored import score_pairs
from tests.support.taught_editors import Places, train_editor

pytestmark = pytest.mark.slow

COUNTRIES = tuple(CAPITALS)
LEARNT_FROM, JUDGED_BY, CHANGED = COUNTRIES[:14], COUNTRIES[14:18], COUNTRIES[18:28]
STAYING = tuple(country for country in COUNTRIES if country not in CHANGED)
PLACES = Places(subject=tuple(f"bert.encoder.layer.{place}.output.dense.weight" for place in (2, 3)))
PLAIN = true_and_false(STAYING)
"""For the prior: nothing about the countries that are changed, where rephrases could not follow."""
LEARN = replace(taught_editors.LEARN, batch=8, network_lr=3e-3, rate_lr=5e-2, first_step=0.4)
"""A checker is surer than the small taught models: steps that move it are longer."""
USE = replace(taught_editors.USE, prior_strength=1000.0, stop_probability=0.9, step=0.4)
"""Of a fact that comes to rest at 0.8 the rephrases follow in seven of ten cases, at 0.9 in all."""
NUM_STEPS, BATCH = 45, 5


def examples_of(model: EditableModel) -> Examples:
    """Changes of countries that are not asked of the trained editor."""
    edits = [
        change(country, place=place, neighbours=_next_to(country, place))
        for place in range(2)
        for country in LEARNT_FROM
    ]
    judged = [change(country, neighbours=_next_to(country, 0)) for country in JUDGED_BY]
    text = "\n".join(true_and_false(STAYING)[::4])
    return make_examples(model, edits, judged, text, num_held_out=len(judged), has_subjects=True)


def _next_to(country: str, place: int) -> tuple[str, ...]:
    start = STAYING.index(country) + 1 + 2 * place
    return tuple(STAYING[(start + step) % len(STAYING)] for step in range(2))


def share(model: EditableModel, pairs: Sequence[tuple[str, str]]) -> float:
    """Of the verdicts that are as expected."""
    return sum(score.is_hit for score in score_pairs(model, pairs)) / len(pairs)


def test_edited_verdicts_land_and_rephrases_follow_and_other_claims_stay(tmp_path: Path) -> None:
    base = teach_fact_checker(tmp_path / "checker")
    model = load_base(base, PLACES.subject, task="classifier")
    edits = [change(country) for country in CHANGED]
    asked = [(edit.request.prompt, edit.request.target_new) for edit in edits]
    # The first rephrase of a request is never an edit row.
    rephrased = [(edit.request.rephrases[0], edit.request.target_new) for edit in edits]
    stays = [pair for country in STAYING for pair in verdicts(country)]
    assert {target for _, target in asked} == {"true", "false"}
    assert share(model, stays) >= 0.95, "the head was trained"
    assert share(model, asked) <= 0.2

    folder = train_editor(
        model,
        PLACES,
        examples_of(model),
        PLAIN,
        tmp_path / "run",
        digest=base_digest(base),
        learn=LEARN,
        use=USE,
        num_steps=NUM_STEPS,
    )
    trained = TrainedEditor.load(folder, base_digest(base))
    assert trained.card.num_steps > 0, "a step was better than the start"
    settings = lineage_settings(trained, task="classifier")
    weights = PlainWeights(model.module, model.inner)
    ledger = Ledger(measure_prior(model, PLAIN), strength=settings.prior_strength, ridge=settings.ridge)
    for start in range(0, len(edits), BATCH):
        result = editor_for(settings, trained.transform).edit(
            EditJob(model=model, weights=weights, ledger=ledger, added=edits[start : start + BATCH])
        )
        weights.apply(result.delta)
        ledger.commit(result.rows, result.removed_ids)

    assert share(model, asked) == 1.0
    assert share(model, rephrased) >= 0.8
    for verdict in ("true", "false"):
        assert share(model, [pair for pair in stays if pair[1] == verdict]) >= 0.95, verdict
