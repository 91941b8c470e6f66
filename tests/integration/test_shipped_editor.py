"""The editor that ships for the base of the demo: whole, for this base, small, and only for who names it."""

from __future__ import annotations

import json
from pathlib import Path

from editors.mend.checkpoint import TrainedEditor
from editors.mend.shipped import CARD, PRETRAINED, shipped_editor
from editors.methods.select import lineage_settings
from editors.models.digest import base_digest
from pipeline.domain.rank_api import BEFORE_FRAMES

MOST_BYTES = 10_000_000
FOLDER = PRETRAINED / "smollm2-135m-instruct"


def test_the_editor_that_ships_is_for_the_base_of_the_demo(base_model: Path) -> None:
    trained = TrainedEditor.load(FOLDER, base_digest(base_model))
    settings = lineage_settings(trained, task="causal")
    assert settings.transform == trained.digest
    assert set(trained.transform.names) == set(settings.subject_params) < set(settings.inner_params)
    assert trained.card.num_steps > 0
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES


def test_it_was_trained_with_frames_and_asks_three_passes_and_is_no_default(base_model: Path) -> None:
    digest = base_digest(base_model)
    settings = lineage_settings(TrainedEditor.load(FOLDER, digest), task="causal")
    assert all(getattr(settings, name) > 0 for name in BEFORE_FRAMES)
    assert settings.num_passes == settings.trained_passes == 3
    assert shipped_editor(digest) is None


def test_its_card_says_what_it_was_made_of_and_not_where() -> None:
    card = json.loads((FOLDER / CARD).read_text(encoding="utf-8"))
    assert {file["use"] for file in card["data"]} >= {"train", "validation", "text"}
    assert card["licence"]
    assert not any(word.startswith(("/", "~")) for word in card["command"].split())
