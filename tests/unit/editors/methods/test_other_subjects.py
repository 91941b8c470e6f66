"""Which other subjects an edit's own prompt is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from editors.methods.guards import Guards
from editors.methods.nearest import NearestNames
from editors.methods.other_subjects import OtherSubjectChoice
from editors.models.families import CausalModel
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.prompts import ChatPrompt, ChatTurn
from pipeline.domain.rank_api import EditorSettings, SuiteProbe
from tests.support.factories import make_edit
from tests.support.ledger_parts import make_rig
from tests.support.tiny_families import tiny_model

NAMES = ("Japan", "France", "Tokyo", "The Paris", "Lyon", "Kyoto", "Rome", "Italy", "Milan", "Berlin", "Germany")
SUITE = (
    SuiteProbe(probe=Probe(prompt="the capital of Spain is"), subject="Spain", relation="Capital"),
    SuiteProbe(probe=Probe(prompt="the king of Rome is"), subject="Rome", relation="king"),
)


@pytest.fixture
def model(tmp_path: Path) -> CausalModel:
    return make_rig(tmp_path).model


def about(subject: str | None = "Bonn", request_id: str = "r1", **changes: Any) -> Edit:
    fields = {
        "prompt": f"the capital of {subject} is",
        "subject": subject,
        "relation": "capital",
        "target_new": "Madrid",
    }
    return make_edit(request_id, **fields | changes)


def settings_of(model: Any) -> EditorSettings:
    names = model.inner_param_names
    return EditorSettings(inner_params=names, subject_params=names[:1], num_guards=3)


def choice(model: Any, *, suite: Sequence[SuiteProbe] = (), names: Sequence[str] | None = NAMES) -> OtherSubjectChoice:
    return OtherSubjectChoice(model, settings_of(model), suite=suite, names=names)


def chosen(model: Any, *edits: Edit, suite: Sequence[SuiteProbe] = (), **known: Any) -> list[tuple[str, str]]:
    """(name, source) of what the first edit of a batch is asked about."""
    return [(one.name, one.source) for one in choice(model, suite=suite).of(edits, **known)[edits[0].edit_id]]


def test_the_nearest_names_of_the_list_stand_in_the_edits_own_prompt(model: CausalModel) -> None:
    [found] = choice(model).of([about()]).values()
    [nearest] = NearestNames(model, model.inner_param_names[:1], NAMES).of(["Bonn"])
    assert [(one.name, one.prompt) for one in found] == [(name, f"the capital of {name} is") for name in nearest[:4]]


def test_a_subject_of_the_relation_comes_first_from_earlier_requests_then_from_the_suite(model: CausalModel) -> None:
    related = {about().edit_id: ("Tokyo", "Vienna")}
    found = chosen(model, about(), suite=SUITE, related=related)
    assert found[:2] == [("Tokyo", "request"), ("Spain", "suite")]
    assert [source for _, source in found[2:]] == ["list", "list"]
    assert len({name for name, _ in found}) == 4


def test_no_other_subject_is_edited_a_guard_of_the_batch_or_told_of_by_the_request(model: CausalModel) -> None:
    first, second = about("Bonn", answer="Madrid, not Lyon", target_new="Madrid"), about("Milan", "r2")
    told: dict[str, Any] = {
        "edited": {"paris", "spain"},
        "guards": {first.edit_id: ("Japan",)},
        "related": {first.edit_id: ("Paris", "Japan", "Milan")},
    }
    every = OtherSubjectChoice(model, settings_of(model), suite=SUITE, names=NAMES, num_others=20)
    names = {one.name for one in every.of([first, second], **told)[first.edit_id]}
    assert names == set(NAMES) - {"The Paris", "Japan", "Milan", "Lyon"}


def test_what_a_request_measures_itself_is_not_asked_again(model: CausalModel) -> None:
    own = about(locality=(Probe(prompt="the capital of Spain is"),))
    assert "Spain" not in [name for name, _ in chosen(model, own, suite=SUITE)]


def test_a_chat_is_asked_about_other_subjects_with_the_beginning_of_its_answer(model: CausalModel) -> None:
    turns = (ChatTurn(role="user", content="what is the capital of Bonn"),)
    chat = about(prompt=turns[0].content, messages=turns, answer="the capital of Bonn is Madrid")
    first = choice(model).of([chat])[chat.edit_id][0]
    asked = (ChatTurn(role="user", content=f"what is the capital of {first.name}"),)
    assert first.prompt == ChatPrompt(turns=asked, begun=f"the capital of {first.name} is")


def test_an_edit_without_a_subject_is_about_the_name_in_its_prompt(model: CausalModel) -> None:
    guessed = about(None, prompt="the capital of Bonn is", relation=None)
    listed = about(None, "r2", prompt="the king of The Paris is", relation=None)
    found = choice(model).of([guessed, listed])
    assert found[guessed.edit_id][0].prompt == f"the capital of {found[guessed.edit_id][0].name} is"
    assert found[listed.edit_id][0].prompt == f"the king of {found[listed.edit_id][0].name} is"
    assert "Paris" not in {one.name for others in found.values() for one in others}


def test_an_edit_that_names_nothing_is_asked_nothing(model: CausalModel) -> None:
    assert choice(model).of([about(None, prompt="the capital is"), about("Bonn", "r2", prompt="the capital is")]) == {}


def test_a_model_without_keys_of_subjects_asks_names_of_the_subjects_kind() -> None:
    bert = tiny_model("bert")
    edit = about("Portugal", target_new="true")
    found = choice(bert, names=None).of([edit], related={edit.edit_id: ("Spain",)})[edit.edit_id]
    assert [(one.name, one.source) for one in found][:2] == [("Spain", "request"), ("France", "list")]


def test_names_that_are_looked_up_are_those_of_the_list_and_of_the_suite(model: CausalModel) -> None:
    names = choice(model, suite=SUITE).names
    assert {"japan", "the paris", "paris", "spain"} <= set(names)


def test_no_name_of_the_list_that_ships_may_be_a_guard(model: CausalModel) -> None:
    settings = settings_of(model)
    own, guards = OtherSubjectChoice(model, settings).names, Guards(model, settings).names
    assert len(own) > 400
    assert len(guards) > 700
    assert not set(own) & set(guards)


def test_a_prompt_that_the_model_cannot_take_is_left_out(model: CausalModel) -> None:
    long = replace(about().request, prompt="the capital of Bonn is")
    assert long.own_prompt_about("Rome") == "the capital of Rome is"
    edit = about()
    related = {edit.edit_id: ("Rome " * 5000,)}
    assert "request" not in [source for _, source in chosen(model, edit, related=related)]
