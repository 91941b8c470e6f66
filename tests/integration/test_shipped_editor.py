"""The editor that ships for the base of the demo: found, whole, for this base, and small."""

from __future__ import annotations

import json
from pathlib import Path

from editors.mend.checkpoint import TrainedEditor
from editors.mend.shipped import CARD, shipped_editor
from editors.methods.select import lineage_settings
from editors.models.digest import base_digest

MOST_BYTES = 10_000_000


def test_the_editor_that_ships_is_for_the_base_of_the_demo(base_model: Path) -> None:
    digest = base_digest(base_model)
    folder = shipped_editor(digest)
    assert folder is not None
    trained = TrainedEditor.load(folder, digest)
    settings = lineage_settings(trained, task="causal")
    assert settings.transform == trained.digest
    assert set(trained.transform.names) == set(settings.subject_params) < set(settings.inner_params)
    assert trained.card.num_steps > 0
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES


def test_its_card_says_what_it_was_made_of_and_not_where(base_model: Path) -> None:
    folder = shipped_editor(base_digest(base_model))
    assert folder is not None
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    assert {file["use"] for file in card["data"]} >= {"train", "validation", "text"}
    assert card["licence"]
    assert not any(word.startswith(("/", "~")) for word in card["command"].split())
