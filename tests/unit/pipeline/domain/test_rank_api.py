"""Records of the ranks: settings that were stored by older versions are still read."""

from __future__ import annotations

import json
from dataclasses import asdict

from pipeline.domain.rank_api import EditorSettings


def test_stored_settings_come_back_as_they_were() -> None:
    settings = EditorSettings(stop_probability=0.7, inner_params=("a", "b"), subject_params=("a",))
    assert EditorSettings.from_stored(json.loads(json.dumps(asdict(settings)))) == settings


def test_settings_that_were_stored_under_the_first_name_of_a_field_are_still_read() -> None:
    stored = {"solver": "recursive", "rest": 0.8, "inner_params": ["a"], "trained": {"name": "somebody"}}
    assert EditorSettings.from_stored(stored) == EditorSettings(
        stop_probability=0.8, inner_params=("a",), frames_per_pass=0, num_guards=0, rephrase_rows=0
    )
