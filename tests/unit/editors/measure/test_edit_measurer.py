"""What is asked of edits, and against which earlier answers it is held, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from editors.measure.edit_measurer import EditMeasurer
from editors.measure.questions import EditQuestions, Extent
from editors.models.generation import Prompts
from editors.weights.deltas import WeightDelta
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.language.answers import confirms
from pipeline.domain.prompts import ChatPrompt, ChatTurn, asked_in_chat
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
        EditQuestions(edit=edits[0], rephrases=(), compared="all"),
        EditQuestions(edit=edits[1], rephrases=(), compared="nothing"),
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


TEMPLATE = "{% for turn in messages %}<s> {{ turn.content }} {% endfor %}is "
"""A chat template in the tiny tokenizer's words."""


def test_the_question_is_answered_in_the_chat_template_up_to_32_tokens(rig: Rig) -> None:
    model = rig.model
    model.tokenizer.chat_template = TEMPLATE
    edit = edit_of(question="who is king of Japan ?")
    asked = EditQuestions(edit=edit, rephrases=(), replies=True)
    assert asked.question == asked_in_chat("who is king of Japan ?")
    measurer = EditMeasurer(model)
    measurer.observe_base([edit])
    [found] = measurer.measure([asked])
    ids = model.tokenizer("<s> who is king of Japan ? is", add_special_tokens=False)["input_ids"]
    [tokens] = model.greedy([ids], max_new_tokens=32)
    assert found.reply is not None
    assert found.reply.text == model.decode(tokens).strip()
    assert found.own.free is None
    said = next(word for word in found.reply.text.split() if word != "<s>")
    right = edit_of(question="who is king of Japan ?", target_new=said, target_true=None)
    [again] = measurer.measure([EditQuestions(edit=right, rephrases=(), replies=True)])
    assert again.reply is not None
    assert (again.reply.text, again.reply.is_right) == (found.reply.text, True)


@pytest.mark.parametrize("has_template", [True, False])
def test_there_is_no_reply_where_nobody_asks_or_no_template_takes_the_question(rig: Rig, has_template: bool) -> None:
    rig.model.tokenizer.chat_template = TEMPLATE if has_template else None
    edits = [edit_of("asked", question="who is king ?"), edit_of("unasked"), edit_of("spared", question="who is ?")]
    measurer = EditMeasurer(rig.model)
    measurer.observe_base(edits)
    asked = [EditQuestions(edit=edit, rephrases=(), replies=edit is not edits[2]) for edit in edits]
    assert [found.reply is not None for found in measurer.measure(asked)] == [has_template, False, False]


def test_a_question_that_two_edits_share_and_one_has_for_its_prompt_is_asked_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.model.tokenizer.chat_template = TEMPLATE
    edits = [edit_of("one", prompt="who is king ?"), edit_of("two", question="who is king ?")]
    measurer = EditMeasurer(rig.model)
    measurer.observe_base(edits)
    greedy, prompts = rig.model.greedy, []

    def counted(asked: Prompts, **settings: Any) -> list[list[int]]:
        prompts.extend(asked)
        return greedy(asked, **settings)

    monkeypatch.setattr(rig.model, "greedy", counted)
    found = measurer.measure([EditQuestions(edit=edit, rephrases=(), free="prompt", replies=True) for edit in edits])
    assert prompts.count(rig.model.encode_prompt(asked_in_chat("who is king ?"))) == 1
    assert len(prompts) == 4  # the shared question, both prompts raw, and the stem in the template
    assert found[0].reply is not None
    assert found[0].own.free is not None
    assert found[0].own.free.is_success_in_chat == confirms(found[0].reply.text, "Kyoto")


def test_rephrases_are_measured_in_their_classes_and_edit_rows_in_none_of_them(rig: Rig) -> None:
    texts = ("who is king of Japan and", "Japan is a", "the king", "in Japan", "born in Japan")
    edit = edit_of(subject="Japan", rephrases=texts)
    measurer = EditMeasurer(rig.model)
    measurer.observe_base([edit])
    [found] = measurer.measure([EditQuestions(edit=edit, rephrases=texts[:3], row_rephrases=texts[3:])])
    scores = measurer.scores([(text, "Kyoto") for text in texts])
    same, other, unnamed, *rows = [scores[text, "Kyoto"] for text in texts]
    assert [asked.score for asked in found.same_context] == [same]
    assert [asked.score for asked in found.other_context] == [other]
    assert [asked.score for asked in found.unnamed] == [unnamed]
    assert [asked.score for asked in found.row_rephrases] == rows
    assert found.rephrases == found.same_context + found.other_context


def test_an_edit_that_came_as_a_chat_is_asked_in_its_chat(rig: Rig) -> None:
    rig.model.tokenizer.chat_template = TEMPLATE
    turns = (ChatTurn(role="user", content="the king"), ChatTurn(role="assistant", content="Tokyo"))
    edit = edit_of(
        prompt="who is king ?", messages=(*turns, ChatTurn(role="user", content="who is king ?")), rephrases=()
    )
    measurer = EditMeasurer(rig.model)
    measurer.observe_base([edit])
    [found] = measurer.measure([EditQuestions(edit=edit, rephrases=(), free="prompt", replies=True)])
    [expected] = score_pairs(rig.model, [(ChatPrompt(turns=edit.request.messages), "Kyoto")])
    assert found.own.score.hits == expected.hits
    assert found.own.free is not None
    assert found.own.free.is_success_in_chat == found.own.free.is_success
    assert found.reply is not None
