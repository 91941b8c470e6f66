"""Which frames a pass asks, and when an edit is left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from editors.measure.scoring import scores
from editors.methods import passes
from editors.methods.edit_reading import Reader, Sequences
from editors.methods.frames import frames_of
from editors.methods.pairs import Pairs
from editors.methods.recursive import RecursiveEditor
from editors.models.families import EditableModel
from editors.models.hooks import Addition
from pipeline.domain.rank_api import EditorSettings
from tests.support.factories import make_edit
from tests.support.framed_parts import edited, framed_edits, framed_job, framed_rig, framed_settings
from tests.support.ledger_parts import Rig, whole_shift


class Watched(Reader):
    """A reader that writes down which sequences were asked, and their least probabilities."""

    readings: list[tuple[Sequences, list[int], dict[int, float], bool]]

    def __init__(self, model: EditableModel, sequences: Sequences, *, keeps_left: bool = True) -> None:
        super().__init__(model, sequences, keeps_left=keeps_left)
        self._watched = sequences

    def read(self, chosen: Sequence[int], branches: Mapping[str, Addition], *, has_keys: bool = True) -> Pairs:
        pairs = super().read(chosen, branches, has_keys=has_keys)
        least = dict(zip(chosen, pairs.least(range(len(chosen))).tolist(), strict=True))
        self.readings.append((self._watched, list(chosen), least, has_keys))
        return pairs


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return framed_rig(tmp_path)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequences, list[int], dict[int, float], bool]]:
    """All readings of the edits that a test makes, in order."""
    monkeypatch.setattr(Watched, "readings", [], raising=False)
    monkeypatch.setattr(passes, "Reader", Watched)
    return Watched.readings


def only_subjects(rig: Rig, **changes: object) -> EditorSettings:
    """All weights are edited at subject tokens: there is one group."""
    return framed_settings(rig, num_subject=len(rig.model.inner_param_names), **changes)


def test_a_pass_asks_the_own_prompt_and_the_frames_that_lagged_most_when_they_were_last_read(
    rig: Rig, readings: list[tuple[Sequences, list[int], dict[int, float], bool]]
) -> None:
    settings = only_subjects(rig, frames_per_pass=2, num_passes=6, stop_probability=0.99)
    RecursiveEditor(settings).edit(framed_job(rig, framed_edits()[:2]))
    assert len(readings) == 6
    known: dict[int, float] = {}
    for sequences, chosen, least, _ in readings:
        for asked in sequences.asked_of:
            own, *others = asked
            of_edit = [place for place in chosen if place in asked]
            assert of_edit[0] == own
            assert len(of_edit) == 2
            assert known.get(of_edit[1], 0.0) == min(known.get(place, 0.0) for place in others)
        known |= least
    read = {place for _, chosen, _, _ in readings for place in chosen}
    assert read == {place for asked in readings[0][0].asked_of for place in asked}, "what was never read lags most"


def test_no_group_is_asked_more_often_than_the_settings_say(
    rig: Rig, readings: list[tuple[Sequences, list[int], dict[int, float], bool]]
) -> None:
    settings = framed_settings(rig, num_passes=3, stop_probability=0.999)
    result = RecursiveEditor(settings).edit(framed_job(rig, framed_edits()))
    kinds = [sequences.group.kind for sequences, _, _, has_keys in readings if has_keys]
    assert kinds == ["subject"] * 3 + ["answer"] * 3
    assert result.num_passes == 6


def test_an_edit_is_left_alone_once_all_its_frames_are_probable_while_others_are_asked_on(
    rig: Rig, readings: list[tuple[Sequences, list[int], dict[int, float], bool]]
) -> None:
    settings = only_subjects(rig, num_passes=30, stop_probability=0.01)
    quick = make_edit("quick", prompt="the river in France is", subject="France", target_new="queen")
    RecursiveEditor(settings).edit(framed_job(rig, [framed_edits()[0], quick]))
    known: dict[int, float] = {}
    gone: set[int] = set()
    for number, (sequences, chosen, least, _) in enumerate(readings, start=1):
        asked = {sequences.edit_S[place] for place in chosen}
        assert not asked & gone
        known |= least
        gone = {
            edit
            for edit, of_edit in enumerate(sequences.asked_of)
            if min(known.get(place, 0.0) for place in of_edit) >= settings.stop_probability
        }
        assert asked - gone or number == len(readings), "once all are left alone, nobody is asked"
    sizes = [len({sequences.edit_S[place] for place in chosen}) for sequences, chosen, _, _ in readings]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1, "one was left alone while the other was asked on"


def test_an_edit_whose_frames_are_all_probable_asks_nothing_and_has_its_rows(rig: Rig) -> None:
    edit = framed_edits()[0]
    settings = framed_settings(rig, frames_per_pass=99)
    edited(rig, settings, framed_job(rig, [edit]))
    asked = frames_of(rig.model, edit, settings).asked
    held = min(score.probability for score in scores(rig.model, list(rig.model.chunked(asked))))
    settings = replace(settings, stop_probability=0.9 * held)
    result = RecursiveEditor(settings).edit(framed_job(rig, [replace(edit, edit_id="again")]))
    assert result.num_passes == 1
    assert max(result.delta.norms.values()) == 0.0
    subject, *others = rig.model.inner_param_names
    assert bool(result.rows.keys_of(subject).any())
    for name in others:
        assert result.rows.ranges[name] == (), "it lands by its subject rows alone"


def test_a_group_without_a_row_is_not_asked(
    rig: Rig, readings: list[tuple[Sequences, list[int], dict[int, float], bool]]
) -> None:
    nobody = framed_edits()[2]
    result = RecursiveEditor(framed_settings(rig, num_passes=2)).edit(framed_job(rig, [nobody]))
    assert {sequences.group.kind for sequences, _, _, _ in readings} == {"answer"}
    assert result.rows.num_rows > 0


@pytest.mark.parametrize("settings_of", [framed_settings, only_subjects])
def test_a_batch_that_passes_the_bound_of_a_change_is_scaled_back_and_keeps_its_ledger(
    rig: Rig, settings_of: Callable[..., EditorSettings]
) -> None:
    free = RecursiveEditor(settings_of(rig)).edit(framed_job(rig, framed_edits()))
    parts = {name: norm / rig.weights.base_norm(name) for name, norm in free.delta.norms.items()}
    assert free.scaled_back is None
    roomy = RecursiveEditor(settings_of(rig, change_bound=1e6)).edit(framed_job(rig, framed_edits()))
    assert roomy.scaled_back is None
    bound = max(parts.values()) / 2
    held = edited(rig, settings_of(rig, change_bound=bound), framed_job(rig, framed_edits()))
    assert held.scaled_back is not None
    assert 0 < held.scaled_back < 1
    for name, norm in held.delta.norms.items():
        assert norm <= bound * rig.weights.base_norm(name) * 1.0001
        shift = rig.weights.shift(name).double()
        assert float((shift - whole_shift(rig.ledger, name)).norm()) <= 1e-3 * float(shift.norm())
