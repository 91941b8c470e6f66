"""The wordings in which an edit is read: which there are, in which order, and what each of them is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from editors.methods.frames import CONTEXT, MAX_ALIASES, EditFrames, frames_of
from editors.models.families import EditableModel
from pipeline.domain.edits import Edit
from pipeline.domain.errors import InvalidInput
from pipeline.domain.prompts import ChatTurn
from pipeline.domain.rank_api import BEFORE_FRAMES, EditorSettings
from tests.support.byte_tokens import (
    CHAT_TEMPLATE,
    NO_SYSTEM_TEMPLATE,
    byte_tokenizer,
    prompt_of,
    target_of,
    up_to_subject,
)
from tests.support.factories import make_edit
from tests.support.tiny_families import tiny_model

SETTINGS = EditorSettings(frames_per_pass=2, num_guards=2, rephrase_rows=2)
CHAT = "[system] \n[user] {}\n[assistant] {}"
"""A question in the template, after a system turn that says nothing, and how the answer begins."""
PROMPT, QUESTION = "The capital of Japan is", "What is Japan's capital?"


def model_of(template: str | None = CHAT_TEMPLATE, *, num_positions: int = 512) -> EditableModel:
    """A tiny model that reads bytes."""
    model = tiny_model("llama", max_position_embeddings=num_positions)
    model.tokenizer = byte_tokenizer(template)
    return model


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return model_of()


@pytest.fixture(scope="module")
def plain() -> EditableModel:
    return model_of(None)


def japan(**changes: Any) -> Edit:
    fields = {"prompt": PROMPT, "subject": "Japan", "target_new": "Kyoto", "question": QUESTION}
    return make_edit("japan", **(fields | changes))


def prompts(model: EditableModel, frames: EditFrames) -> list[str]:
    return [prompt_of(model.tokenizer, encoded) for encoded in frames.asked]


def test_the_own_prompt_is_first_and_then_come_chat_context_rephrases_question_and_aliases(
    model: EditableModel,
) -> None:
    edit = japan(
        rephrases=("Of Japan, the capital is", "Japan has its capital in", "Japan's seat is", "Japan is led from"),
        aliases=("Nippon", "Nihon"),
    )
    found = frames_of(model, edit, SETTINGS)
    assert prompts(model, found) == [
        PROMPT,
        CHAT.format(QUESTION, PROMPT),
        f"{CONTEXT} {PROMPT}",
        "Japan has its capital in",
        "Japan's seat is",
        f"Question: {QUESTION}\nAnswer: {PROMPT}",
        "The capital of Nippon is",
        "The capital of Nihon is",
    ]
    assert {target_of(model.tokenizer, encoded) for encoded in found.asked} == {" Kyoto"}
    assert found.answered == (True, True, False, True, True, False, True, True)
    ends = [up_to_subject(model.tokenizer, encoded) for encoded in found.asked]
    assert [end.rsplit(maxsplit=1)[-1] for end in ends] == ["Japan"] * 6 + ["Nippon", "Nihon"]


def test_frames_that_end_with_the_subject_are_of_each_of_its_names(model: EditableModel) -> None:
    found = frames_of(model, japan(aliases=("Nippon",)), SETTINGS)
    said = [prompt_of(model.tokenizer, encoded) for encoded in found.keyed]
    assert said == ["Japan", "The news about Japan", "Nippon", "The news about Nippon"]
    assert [up_to_subject(model.tokenizer, encoded) for encoded in found.keyed] == said


def test_the_same_request_has_the_same_frames(model: EditableModel) -> None:
    edit = japan(rephrases=("a", "Japan has its capital in"), aliases=("Nippon",))
    assert frames_of(model, edit, SETTINGS, ("France",)) == frames_of(model, edit, SETTINGS, ("France",))


@pytest.mark.parametrize("rephrase_rows", [0, 1, 9])
@pytest.mark.parametrize("frames_per_pass", [0, 2])
def test_the_rephrase_that_is_kept_back_is_never_a_frame(
    model: EditableModel, rephrase_rows: int, frames_per_pass: int
) -> None:
    rephrases = tuple(f"Wording {place}: Japan's capital is" for place in range(4))
    settings = replace(SETTINGS, rephrase_rows=rephrase_rows, frames_per_pass=frames_per_pass)
    edit = japan(rephrases=rephrases)
    asked = prompts(model, frames_of(model, edit, settings))
    assert [text for text in asked if text in rephrases] == list(rephrases[1 : 1 + rephrase_rows])
    assert not any(probe in text for text in asked for probe in edit.request.unseen_rephrases(rephrase_rows))


def test_no_more_aliases_than_a_few_have_frames(model: EditableModel) -> None:
    aliases = ("Nippon", "Nihon", "Zipangu", "Yamato")
    found = frames_of(model, japan(aliases=aliases), SETTINGS)
    said = "".join([*prompts(model, found), *(prompt_of(model.tokenizer, encoded) for encoded in found.keyed)])
    assert [name for name in aliases if name in said] == list(aliases[:MAX_ALIASES])


def test_an_alias_that_is_the_subject_adds_nothing(model: EditableModel) -> None:
    assert frames_of(model, japan(aliases=("Japan",)), SETTINGS) == frames_of(model, japan(), SETTINGS)


def test_without_a_template_there_is_no_chat(plain: EditableModel) -> None:
    assert prompts(plain, frames_of(plain, japan(), SETTINGS)) == [
        PROMPT,
        f"{CONTEXT} {PROMPT}",
        f"Question: {QUESTION}\nAnswer: {PROMPT}",
    ]


def test_a_template_that_refuses_system_turns_is_given_none() -> None:
    model = model_of(NO_SYSTEM_TEMPLATE)
    assert prompts(model, frames_of(model, japan(), SETTINGS))[1] == f"[user] {QUESTION}\n[assistant] {PROMPT}"


def test_a_chat_that_the_template_refuses_is_no_frame_of_a_stem_and_an_error_of_an_edit_that_is_a_chat() -> None:
    model = model_of(NO_SYSTEM_TEMPLATE)
    turns = (ChatTurn(role="system", content="Be brief."), ChatTurn(role="user", content=QUESTION))
    assert not any("[user]" in text for text in prompts(model, frames_of(model, japan(messages=turns), SETTINGS)))
    with pytest.raises(InvalidInput, match="template"):
        frames_of(model, japan(prompt=QUESTION, question=None, messages=turns), SETTINGS)


def test_a_correction_that_came_only_as_a_chat_is_asked_in_it_first(model: EditableModel) -> None:
    turns = (
        ChatTurn(role="user", content="Hello"),
        ChatTurn(role="assistant", content="Good day!"),
        ChatTurn(role="user", content=QUESTION),
    )
    edit = japan(prompt=QUESTION, question=None, messages=turns, answer="It is Kyoto.", aliases=("Nippon",))
    found = frames_of(model, edit, SETTINGS, ("France",))
    said = "[user] Hello\n[assistant] Good day!\n[user] {}\n[assistant] It is"
    assert prompts(model, found) == [
        said.format(QUESTION),
        "[system] \n" + said.format(QUESTION),
        f"Question: {QUESTION}\nAnswer: It is",
    ]
    assert found.answered == (True, True, False)
    assert [prompt_of(model.tokenizer, encoded) for encoded in found.guards] == [
        said.format("What is France's capital?")
    ]
    assert prompt_of(model.tokenizer, found.keyed[2]) == "Nippon"


def test_a_system_turn_of_the_producers_own_stays(model: EditableModel) -> None:
    turns = (ChatTurn(role="system", content="Be brief."), ChatTurn(role="user", content=QUESTION))
    assert prompts(model, frames_of(model, japan(messages=turns), SETTINGS))[1] == (
        f"[system] Be brief.\n[user] {QUESTION}\n[assistant] {PROMPT}"
    )


def test_an_answer_that_is_cut_into_other_tokens_than_the_own_is_asked_and_has_no_answer_rows(
    model: EditableModel,
) -> None:
    found = frames_of(model, japan(prompt=QUESTION, question=None), SETTINGS)
    assert prompts(model, found) == [
        QUESTION,
        CHAT.format(QUESTION, ""),
        f"{CONTEXT} {QUESTION}",
        f"Question: {QUESTION}\nAnswer:",
    ]
    assert [target_of(model.tokenizer, encoded) for encoded in found.asked] == [" Kyoto", "Kyoto", " Kyoto", " Kyoto"]
    assert found.answered == (True, False, False, False)


def test_a_request_without_a_subject_is_asked_in_other_wordings_and_has_no_keys_or_guards(
    model: EditableModel,
) -> None:
    found = frames_of(model, japan(subject=None, aliases=("Nippon",)), SETTINGS, ("France",))
    assert len(found.asked) == 4
    assert all(encoded.subject_end is None for encoded in found.asked)
    assert found.keyed == found.guards == ()


def test_a_subject_that_the_own_prompt_does_not_name_has_no_keys_or_guards(model: EditableModel) -> None:
    found = frames_of(model, japan(prompt="Its capital is"), SETTINGS, ("France",))
    assert found.keyed == found.guards == ()


@pytest.mark.parametrize(
    ("prompt", "subject", "question", "target"),
    [
        ("日本的首都是", "日本", "日本的首都是哪里\uff1f", "京都"),
        ("عاصمة اليابان هي", "اليابان", "ما هي عاصمة اليابان؟", "كيوتو"),
        ("The capital of Côte d'Ivoire is", "Côte d'Ivoire", "Where is it?", "Abidjan"),
    ],
)
def test_subjects_of_any_script_end_where_they_end(
    model: EditableModel, prompt: str, subject: str, question: str, target: str
) -> None:
    edit = japan(prompt=prompt, subject=subject, question=question, target_new=target, aliases=("Ω",))
    found = frames_of(model, edit, SETTINGS, ("法国",))
    named = [encoded for encoded in (*found.asked, *found.keyed) if encoded.subject_end is not None]
    ends = [up_to_subject(model.tokenizer, encoded) for encoded in named]
    assert sum(end.endswith(subject) for end in ends) >= 6
    assert all(end.endswith((subject, "Ω")) for end in ends)
    assert [up_to_subject(model.tokenizer, encoded) for encoded in found.guards] == [
        prompt.replace(subject, "法国").partition("法国")[0] + "法国"
    ]
    assert all(target_of(model.tokenizer, encoded).strip() == target for encoded in found.asked)


def test_a_frame_that_is_like_another_is_there_once(model: EditableModel) -> None:
    again = japan(rephrases=("kept back", f"{CONTEXT} {PROMPT}", f"Question: {QUESTION}\nAnswer: {PROMPT}"))
    found = frames_of(model, again, SETTINGS)
    assert len(set(prompts(model, found))) == len(found.asked) == len(found.answered)
    assert sorted(prompts(model, found)) == sorted(prompts(model, frames_of(model, japan(), SETTINGS)))


def test_guards_are_other_subjects_in_the_own_prompt_and_ask_for_the_targets_first_token(
    model: EditableModel,
) -> None:
    found = frames_of(model, japan(), SETTINGS, ("France", "Ivory Coast"))
    assert [prompt_of(model.tokenizer, encoded) for encoded in found.guards] == [
        "The capital of France is",
        "The capital of Ivory Coast is",
    ]
    assert {encoded.target_ids for encoded in found.guards} == {found.asked[0].target_ids[:1]}
    assert [up_to_subject(model.tokenizer, encoded) for encoded in found.guards] == [
        "The capital of France",
        "The capital of Ivory Coast",
    ]


def test_without_frames_an_edit_is_its_own_prompt_and_its_rephrases(model: EditableModel) -> None:
    edit = japan(rephrases=("Of Japan, the capital is", "Japan has its capital in"), aliases=("Nippon",))
    found = frames_of(model, edit, replace(SETTINGS, frames_per_pass=0), ("France",))
    assert prompts(model, found) == [PROMPT, "Japan has its capital in"]
    assert (found.answered, found.keyed, found.guards) == ((True, True), (), ())
    before: dict[str, Any] = {**BEFORE_FRAMES}
    assert prompts(model, frames_of(model, edit, replace(SETTINGS, **before))) == [PROMPT]


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_models_whose_keys_are_no_subject_tokens_have_rephrases_alone(name: str) -> None:
    model = tiny_model(name)
    target = "true" if name == "bert" else "Kyoto"
    edit = japan(prompt="the capital of Japan is", rephrases=("kept", "Japan capital is"), target_new=target)
    found = frames_of(model, edit, SETTINGS, ("France",))
    assert len(found.asked) == 2
    assert (found.answered, found.keyed, found.guards) == ((True, True), (), ())


def test_frames_that_are_longer_than_the_model_takes_are_left_out_but_an_own_prompt_is_an_error() -> None:
    edit = japan(rephrases=("kept", "Japan's seat is"))
    shorter = model_of(num_positions=40)
    assert prompts(shorter, frames_of(shorter, edit, SETTINGS)) == [PROMPT, "Japan's seat is"]
    with pytest.raises(InvalidInput, match="at most 16 tokens"):
        frames_of(model_of(num_positions=16), edit, SETTINGS)


def test_a_target_that_the_model_cannot_take_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="target"):
        frames_of(tiny_model("bert"), japan(target_new="Kyoto Kyoto"), SETTINGS)
