"""What is measured of an edit's own prompt about other subjects, on tiny models against plain computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from editors.measure import other_subjects
from editors.measure.other_subjects import OtherSubject, OtherSubjects
from editors.measure.rounds import answered
from editors.measure.scoring import readings
from editors.measure.undoing import negative_delta
from editors.methods.base import EditJob
from editors.methods.recursive import RecursiveEditor
from editors.models.families import EditableModel
from editors.weights.deltas import PlainWeights, WeightDelta
from pipeline.domain.edits import Edit
from pipeline.domain.prompts import ChatPrompt, ChatTurn
from tests.support.factories import make_edit
from tests.support.ledger_parts import SETTINGS, Rig, make_rig
from tests.support.tiny_families import tiny_model

PROMPTS = ("the capital of Rome is", "the capital of Japan is", "the capital of Spain is")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return make_rig(tmp_path)


def edit_of(**changes: Any) -> Edit:
    return make_edit("e", prompt="the capital of Bonn is", subject="Bonn", **{"target_new": "Madrid", **changes})


def asked_of(edit: Edit, *prompts: Any) -> dict[str, tuple[OtherSubject, ...]]:
    return {edit.edit_id: tuple(OtherSubject(name="x", source="list", prompt=prompt) for prompt in prompts)}


def delta_for(rig: Rig, edit: Edit) -> WeightDelta:
    job = EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=[edit])
    return RecursiveEditor(SETTINGS).edit(job).delta


def next_token(model: Any, prompt: str) -> torch.Tensor:
    ids = torch.tensor([model.encode_prompt(prompt)])
    logits: torch.Tensor = model.module(ids).logits[0, -1].log_softmax(0)
    return logits.detach()


def test_the_first_token_of_the_answer_is_compared_with_the_parents(rig: Rig) -> None:
    edit, prompts = edit_of(), PROMPTS
    delta = delta_for(rig, edit)
    before = [next_token(rig.model, prompt) for prompt in prompts]
    measure = OtherSubjects(rig.model)
    measure.observe_parent(asked_of(edit, *prompts))
    rig.weights.apply(delta)
    [scores] = answered(
        rig.model, measure.talk([edit], asked_of(edit, *prompts)), undone=negative_delta(rig.model, delta)
    ).values()
    target = rig.model.encode_pair(edit.request.prompt, "Madrid").target_ids[0]
    for prompt, was, score in zip(prompts, before, scores, strict=True):
        now = next_token(rig.model, prompt)
        assert score.kl == pytest.approx(float((was.exp() * (was - now)).sum()), abs=1e-4)
        assert score.is_unchanged == bool(was.argmax() == now.argmax())
        assert score.takes_answer == (int(now.argmax()) == target and not score.is_unchanged)
        assert score.prompt == prompt


def test_an_edit_whose_prompt_is_another_subjects_takes_that_subjects_answer_and_says_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_subjects, "TOLD_FROM", 0.0)
    edit = edit_of()
    others = asked_of(edit, edit.request.prompt, "where is")
    delta = delta_for(rig, edit)
    said = rig.model.generate([edit.request.prompt], max_new_tokens=other_subjects.TOLD_TOKENS)[0]
    measure = OtherSubjects(rig.model)
    measure.observe_parent(others)
    rig.weights.apply(delta)
    name = rig.model.inner_param_names[0]
    weight = rig.model.module.get_parameter(name).clone()
    [[taken, other]] = answered(
        rig.model, measure.talk([edit], others), undone=negative_delta(rig.model, delta)
    ).values()
    assert taken.takes_answer
    assert taken.after.startswith("Madrid")
    assert taken.before == said.strip()
    assert not other.takes_answer
    assert torch.equal(rig.model.module.get_parameter(name), weight)


def test_only_what_the_parent_has_not_been_asked_is_asked_and_another_parent_is_asked_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain = readings
    monkeypatch.setattr(
        other_subjects,
        "readings",
        lambda model, prepared: (asked.append(sum(len(places) for places, _ in prepared)), plain(model, prepared))[1],
    )
    edit, measure = edit_of(), OtherSubjects(rig.model)
    measure.observe_parent(asked_of(edit, *PROMPTS[:2]))
    measure.observe_parent(asked_of(edit, *PROMPTS))
    measure.reset()
    measure.observe_parent(asked_of(edit, PROMPTS[0]))
    assert asked == [2, 1, 1]


def test_nothing_is_run_where_nothing_is_asked(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = OtherSubjects(rig.model)
    monkeypatch.setattr(rig.model, "target_logits", None)
    measure.observe_parent({})
    assert answered(rig.model, measure.talk([edit_of()], {})) == {}


@pytest.mark.parametrize("family", ["t5", "bart", "bert"])
def test_models_of_other_families_are_asked_by_their_first_token_or_label(family: str) -> None:
    model = tiny_model(family)
    weights = PlainWeights(model.module, model.inner)
    edit = edit_of(target_new="true" if model.task == "classifier" else "Madrid")
    others, delta = asked_of(edit, *PROMPTS), delta_of_nothing(model)
    measure = OtherSubjects(model)
    measure.observe_parent(others)
    weights.apply(delta)
    [scores] = answered(model, measure.talk([edit], others), undone=negative_delta(model, delta)).values()
    assert [(score.is_unchanged, score.kl) for score in scores] == [(True, pytest.approx(0.0, abs=1e-6))] * 3


def test_a_chat_is_shown_by_its_last_turn_and_the_beginning_of_its_answer() -> None:
    chat = ChatPrompt(turns=(ChatTurn(role="user", content="who is it?"),), begun="it is")
    assert other_subjects.shown(chat) == "who is it? it is"


def delta_of_nothing(model: EditableModel) -> WeightDelta:
    param = model.inner[0]
    return WeightDelta.of({param.name: (torch.zeros(param.in_features, 1), torch.zeros(1, param.out_features))})
