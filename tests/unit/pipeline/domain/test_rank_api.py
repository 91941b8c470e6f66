"""Records of the ranks: settings that were stored by older versions are still read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import BEFORE_FRAMES, EditorSettings


def test_stored_settings_come_back_as_they_were() -> None:
    settings = EditorSettings(stop_probability=0.7, inner_params=("a", "b"), subject_params=("a",))
    assert EditorSettings.from_stored(json.loads(json.dumps(asdict(settings)))) == settings


@pytest.mark.parametrize(("name", "value"), [("prior_strength", math.nan), ("num_passes", 0), ("step", "x")])
def test_settings_out_of_their_range_are_refused_wherever_they_come_from(name: str, value: object) -> None:
    with pytest.raises(Misconfigured, match=f"expected {name} of an editor: .*number .*, got {value!r}"):
        EditorSettings.from_stored({name: value})


def test_settings_that_were_stored_under_the_first_name_of_a_field_are_still_read() -> None:
    stored = {"solver": "recursive", "rest": 0.8, "inner_params": ["a"], "trained": {"name": "somebody"}}
    assert EditorSettings.from_stored(stored) == EditorSettings(
        stop_probability=0.8, inner_params=("a",), frames_per_pass=0, num_guards=0, rephrase_rows=0
    )


def test_settings_from_before_frames_go_on_with_one_row_an_edit() -> None:
    later = asdict(EditorSettings(num_passes=7))
    former = {name: value for name, value in later.items() if name not in BEFORE_FRAMES}
    found = EditorSettings.from_stored(former)
    assert found.num_passes == 7
    assert (found.frames_per_pass, found.num_guards, found.rephrase_rows) == (0, 0, 0)


def test_rephrase_rows_that_were_stored_before_frames_stay() -> None:
    assert EditorSettings.from_stored({"rephrase_rows": 2}) == EditorSettings(
        rephrase_rows=2, frames_per_pass=0, num_guards=0
    )
