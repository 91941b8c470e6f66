"""What is asked of edits, and against which earlier answers it is held, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors.measure.edit_measurer import EditMeasurer, EditQuestions, Extent
from editors.weights.deltas import WeightDelta
from pipeline.domain.edits import Edit, Probe
from tests.support.factories import make_edit
from tests.support.ledger_parts import Rig, make_rig
from tests.support.scored import score_pairs


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return make_rig(tmp_path)


def edit_of(edit_id: str = "one", **changes: object) -> Edit:
    fields: dict[str, object] = {
        "prompt": "who is king of Japan",
        "target_new": "Kyoto",
        "target_true": "Tokyo",
        "rephrases": ("the king of Japan",),
        "locality": (Probe(prompt="river in", target="Spain"), Probe(prompt="city was")),
        "portability": (Probe(prompt="spoken in", target="Japan"), Probe(prompt="born in")),
    }
    return make_edit(edit_id, **(fields | changes))


def shift(rig: Rig, seed: int) -> None:
    """Edit the model at random."""
    draw = torch.Generator().manual_seed(seed)
    rig.weights.apply(
        WeightDelta.of(
            {
                param.name: (
                    torch.randn(param.in_features, 2, generator=draw) * 0.2,
                    torch.randn(2, param.out_features, generator=draw),
                )
                for param in rig.model.inner
            }
        )
    )


def test_targets_are_those_of_the_prompt_its_rephrases_and_what_follows_from_it() -> None:
    asked = EditQuestions(edit=edit_of(), rephrases=("the king of Japan",))
    assert asked.targets == [
        ("who is king of Japan", "Kyoto"),
        ("the king of Japan", "Kyoto"),
        ("spoken in", "Japan"),
    ]


@pytest.mark.parametrize(
    ("extent", "alternatives", "num_free"),
    [
        ("nothing", [], 0),
        ("prompt", [("who is king of Japan", "Tokyo")], 1),
        (
            "all",
            [
                ("who is king of Japan", "Tokyo"),
                ("the king of Japan", "Tokyo"),
                ("river in", "Spain"),
                ("river in", "Kyoto"),
            ],
            3,
        ),
    ],
)
def test_no_more_is_compared_and_answered_freely_than_was_asked(
    extent: Extent, alternatives: list[tuple[str, str]], num_free: int
) -> None:
    asked = EditQuestions(edit=edit_of(), rephrases=("the king of Japan",), compared=extent, free=extent)
    assert asked.alternatives == alternatives
    assert len(asked.answered_freely) == num_free


def test_a_pair_that_several_edits_ask_is_scored_once(rig: Rig) -> None:
    pairs = [("who is king of Japan", "Kyoto"), ("river in", "Spain"), ("who is king of Japan", "Kyoto")]
    found = EditMeasurer(rig.model).scores(pairs)
    assert list(found) == pairs[:2]
    for score, plain in zip(found.values(), score_pairs(rig.model, pairs[:2]), strict=True):
        assert score.hits == plain.hits
        assert score.mean_log_probability == pytest.approx(plain.mean_log_probability, abs=1e-5)


def test_an_edit_that_asked_for_no_comparison_gets_none_of_another_edit(rig: Rig) -> None:
    edits = [edit_of("one"), edit_of("two")]
    measurer = EditMeasurer(rig.model)
    measurer.observe_base(edits)
    asked = [
        EditQuestions(edit=edit, rephrases=(), compared=extent)
        for edit, extent in zip(edits, ("all", "nothing"), strict=True)
    ]
    one, two = measurer.measure(asked)
    assert one.own.prefers_new in (True, False)
    assert one.neighbours[0].prefers_true in (True, False)
    assert two.own.prefers_new is two.own.free is two.neighbours[0].prefers_true is None


def test_neighbours_are_held_against_the_base_and_against_the_parent(rig: Rig) -> None:
    edit = edit_of()
    measurer = EditMeasurer(rig.model)
    measurer.observe_base([edit])
    asked = [EditQuestions(edit=edit, rephrases=())]
    shift(rig, 1)
    parent = measurer.readings([edit])
    [at_parent] = measurer.measure(asked, parent=parent)
    assert all(found.from_parent is not None and found.from_parent.kl < 1e-6 for found in at_parent.neighbours)
    shift(rig, 2)
    [found] = measurer.measure(asked, parent=parent)
    [alone] = measurer.measure(asked)
    for neighbour, without_parent in zip(found.neighbours, alone.neighbours, strict=True):
        assert neighbour.from_parent is not None
        assert neighbour.from_parent.kl > 1e-3
        assert neighbour.from_parent.kl != neighbour.from_base.kl
        assert without_parent.from_parent is None
        assert without_parent.from_base.kl == pytest.approx(neighbour.from_base.kl, rel=1e-4)


def test_what_the_base_said_is_asked_once_until_it_is_forgotten(rig: Rig) -> None:
    edit = edit_of()
    measurer = EditMeasurer(rig.model)
    measurer.observe_base([edit])
    at_base = measurer.base_readings([edit])[edit.edit_id]
    shift(rig, 1)
    measurer.observe_base([edit])
    assert measurer.base_readings([edit])[edit.edit_id] == at_base
    assert len(measurer) == 1
    measurer.forget()
    assert len(measurer) == 0
    measurer.observe_base([edit])
    assert not torch.equal(measurer.base_readings([edit])[edit.edit_id][0].log_top_TK, at_base[0].log_top_TK)
