"""The formats of the literature, as their files have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editors.data.datasets import read_edits
from editors.data.formats import QUESTIONS
from pipeline.domain.edits import EditRequest, Probe
from pipeline.domain.errors import Misconfigured
from pipeline.domain.wordings import Wording, can_be_asked, wording_of
from tests.support.paths import ROOT

COUNTERFACT = {
    "case_id": 1,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux spoke the language", "Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The mother tongue of Louis Jouvet is", "Montesquieu, a native"],
    "attribute_prompts": ["J. K. Rowling, speaker of"],
    "generation_prompts": ["Where Danielle Darrieux is from,"],
}
ROME_ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}
MEND_ZSRE = {
    "input": "What war did Denver Smith fight in?",
    "prediction": "World War II",
    "alternatives": ["Vietnam War", "Korean War"],
    "filtered_rephrases": ["In which war was Denver Smith?", "Which war did Denver Smith serve in?"],
    "output": [{"answer": "American Civil War", "provenance": []}],
}
KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "What's Leo Arons's place of death?",
    "target_new": "Cologne",
    "ground_truth": [["Berlin"]],
    "rephrase_prompt": "Where did Leo Arons die?",
    "portability": {
        "Reasoning": [{"prompt": "In which country did Leo Arons die?", "ground_truth": [["Germany", "DE"]]}],
        "Subject_Aliasing": [{"prompt": "Where did Martin Leo Arons die?", "ground_truth": [["Cologne"]]}],
        "Logical_Generalization": [{"prompt": "Is Leo Arons still alive?", "ground_truth": [[]]}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The name of Leo Arons's father is", "ground_truth": [["Albert"]]}]
    },
}
EASYEDIT = {
    "prompt": "Ray Charles, the",
    "subject": "Ray Charles",
    "ground_truth": "piano",
    "target_new": "violin",
    "rephrase_prompt": "Ray Charles plays the",
    "locality": {"neighborhood": {"prompt": ["Joseph Fischhof, the"], "ground_truth": ["piano"]}},
    "portability": {"one_hop": {"prompt": "Ray Charles was a player of strings or keys?", "ground_truth": "strings"}},
}


def read_one(folder: Path, document: dict[str, Any], *, is_list: bool = False) -> EditRequest:
    path = folder / "data.json"
    path.write_text(json.dumps([document] if is_list else document))
    [edit] = read_edits(path)
    return edit.request


def test_counterfact_fills_in_its_subject_and_its_neighbours_share_the_true_answer(tmp_path: Path) -> None:
    request = read_one(tmp_path, COUNTERFACT, is_list=True)
    assert request.prompt == "The mother tongue of Danielle Darrieux is"
    assert (request.subject, request.relation) == ("Danielle Darrieux", "P103")
    assert (request.target_new, request.target_true) == ("English", "French")
    assert request.rephrases == ("Danielle Darrieux spoke the language", "Danielle Darrieux, a native")
    assert [(probe.prompt, probe.target) for probe in request.locality] == [
        ("The mother tongue of Louis Jouvet is", "French"),
        ("Montesquieu, a native", "French"),
    ]


def test_zsre_of_rome_asks_for_the_alternative_and_replaces_the_answer(tmp_path: Path) -> None:
    request = read_one(tmp_path, ROME_ZSRE, is_list=True)
    assert request.prompt == "What university did Watts Humphrey attend?"
    assert (request.target_new, request.target_true) == ("University of Michigan", "Illinois Institute of Technology")
    assert request.rephrases == ("What university did Watts Humphrey take part in?",)
    [probe] = request.locality
    assert (probe.prompt, probe.target) == ("nq question: who played desmond doss father", "Hugo Weaving")


def test_zsre_without_an_alternative_asks_for_the_answer_and_replaces_the_prediction(tmp_path: Path) -> None:
    request = read_one(tmp_path, ROME_ZSRE | {"alt": ""})
    assert (request.target_new, request.target_true) == ("Illinois Institute of Technology", "Trinity College")


def test_zsre_of_mend_takes_the_first_alternative_and_every_rephrase(tmp_path: Path) -> None:
    request = read_one(tmp_path, MEND_ZSRE)
    assert (request.target_new, request.target_true) == ("Vietnam War", "American Civil War")
    assert len(request.rephrases) == 2


def test_zsre_with_a_new_question_tests_portability(tmp_path: Path) -> None:
    ported = {
        "portability": {"Recalled Relation": "x", "New Question": "Which state is it in?", "New Answer": "Michigan"}
    }
    [probe] = read_one(tmp_path, ROME_ZSRE | ported).portability
    assert (probe.prompt, probe.target) == ("Which state is it in?", "Michigan")


def test_knowedit_names_its_probes_and_one_without_an_answer_is_left_out(tmp_path: Path) -> None:
    request = read_one(tmp_path, KNOWEDIT, is_list=True)
    assert (request.target_new, request.target_true) == ("Cologne", "Berlin")
    assert request.rephrases == ("Where did Leo Arons die?",)
    assert [probe.target for probe in request.portability] == ["Germany", "Cologne"]
    assert [(probe.prompt, probe.target) for probe in request.locality] == [
        ("The name of Leo Arons's father is", "Albert")
    ]


def test_easyedit_keeps_prompts_and_answers_side_by_side(tmp_path: Path) -> None:
    request = read_one(tmp_path, EASYEDIT)
    assert request.target_true == "piano"
    assert [(probe.prompt, probe.target) for probe in request.locality] == [("Joseph Fischhof, the", "piano")]
    assert [probe.target for probe in request.portability] == ["strings"]


def test_our_own_lines_with_probes_in_lists_are_not_taken_for_another_format(tmp_path: Path) -> None:
    own = {"prompt": "A is", "target_new": "b", "rephrases": ["a ="], "locality": [{"prompt": "C is", "target": "d"}]}
    request = read_one(tmp_path, own)
    assert request.rephrases == ("a =",)
    assert request.locality[0].target == "d"


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"question": "A?", "answer": "b"}, "prompt"),
        ({"requested_rewrite": "A"}, "CounterFact"),
        ({"requested_rewrite": {}}, "prompt"),
        (MEND_ZSRE | {"output": ["x"]}, "zsRE"),
        ({"src": "A?"}, "target_new"),
        (KNOWEDIT | {"locality": {"x": ["y"]}}, "EasyEdit"),
        ({"prompt": "A", "target_new": "b", "ground_truth": "c", "colour": 3} | {"target_new": 7}, "target_new"),
    ],
)
def test_an_object_of_no_format_is_named_with_what_it_lacks(
    document: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(Misconfigured, match=complaint) as error:
        read_one(tmp_path, document, is_list=True)
    assert "item 1" in str(error.value)


def test_a_neighbour_whose_answer_is_too_long_is_kept_without_it_and_a_consequence_is_not(tmp_path: Path) -> None:
    long = "word " * 60
    request = read_one(tmp_path, FLAT | {"locality_answer": long})
    assert request.locality == (Probe(prompt="BBC Radio, by"),)
    request = read_one(tmp_path, REAL | {"portability": [{"prompt": "It is", "target": long}]})
    assert request.portability == ()


REAL: dict[str, Any] = {
    "id": "dev-1",
    "subject": "Thailand",
    "relation": "head_of_government",
    "prompt": "The current prime minister of Thailand is",
    "target_new": "Anutin Charnvirakul",
    "target_true": "Prayut Chan-o-cha",
    "paraphrases": ["Thailand's government is headed by"],
    "question": "Who is the prime minister of Thailand?",
    "chat_stem": "Thailand's current prime minister is",
    "far": ["The head of the government in Bangkok is"],
    "neighbors": [{"prompt": "The current prime minister of India is", "target": "Narendra Modi"}],
    "portability": [{"prompt": "The party of Thailand's prime minister is", "target": "Bhumjaithai"}],
}


def test_a_real_correction_brings_its_question_an_answer_and_wordings_without_the_subject(tmp_path: Path) -> None:
    request = read_one(tmp_path, REAL)
    assert (request.prompt, request.subject) == ("The current prime minister of Thailand is", "Thailand")
    assert request.rephrases == ("Thailand's government is headed by", "The head of the government in Bangkok is")
    assert [wording_of(text, request) for text in request.rephrases] == [Wording.other_context, Wording.unnamed]
    assert request.question == "Who is the prime minister of Thailand?"
    assert request.answer == "Thailand's current prime minister is Anutin Charnvirakul."
    assert request.chat_prompt.begun == "Thailand's current prime minister is"
    assert request.locality == (Probe(prompt="The current prime minister of India is", target="Narendra Modi"),)
    assert request.portability == (Probe(prompt="The party of Thailand's prime minister is", target="Bhumjaithai"),)


def test_a_real_correction_may_leave_out_all_that_is_asked_of_it(tmp_path: Path) -> None:
    request = read_one(tmp_path, {"prompt": "It is", "target_new": "so", "chat_stem": None, "far": []})
    assert (request.question, request.answer, request.rephrases, request.locality) == (None, None, (), ())


FLAT: dict[str, Any] = {
    "relation": "P127",
    "subject": "BBC One",
    "prompt": "BBC One, by",
    "target_new": "Sega",
    "target_true": "BBC",
    "paraphrases": ["BBC One is owned by"],
    "locality_prompt": "BBC Radio, by",
    "locality_answer": "BBC",
}


@pytest.mark.parametrize("has_subject", [True, False])
def test_an_edit_of_a_known_relation_gets_its_question_if_its_prompt_names_the_subject(
    has_subject: bool, tmp_path: Path
) -> None:
    request = read_one(tmp_path, FLAT if has_subject else FLAT | {"prompt": "The channel is by"})
    expected = ("Who owns BBC One?", "BBC One is owned by Sega.") if has_subject else (None, None)
    assert (request.question, request.answer) == expected


def test_counterfact_gets_the_same_questions_and_an_unknown_relation_none(tmp_path: Path) -> None:
    request = read_one(tmp_path, COUNTERFACT)
    assert request.question == "What is the native language of Danielle Darrieux?"
    assert request.answer == "The native language of Danielle Darrieux is English."
    assert read_one(tmp_path, FLAT | {"relation": "P0"}).question is None


def test_every_question_and_its_answer_name_the_subject() -> None:
    known = json.loads(QUESTIONS.read_text())
    assert len(known) == 33
    for texts in known.values():
        assert set(texts) == {"question", "answer_stem"}
        assert all(text.count("[X]") == 1 for text in texts.values())
        assert texts["question"].endswith("?")


@pytest.mark.parametrize(
    "name", ["real_dev", "zsre_val", "wikibigedit_val", "counterfact_pararel_val", "counterfact_pararel_stream"]
)
def test_the_files_at_hand_are_read_whole(name: str) -> None:
    path = ROOT.parent / "shared" / "data" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"expected the data at hand in {path}; they are no part of the repository")
    edits = read_edits(path)
    assert len(edits) == len(path.read_text().splitlines())
    if name == "real_dev":
        wordings = [wording_of(text, edit.request) for edit in edits for text in edit.request.rephrases]
        assert (wordings.count(Wording.other_context), wordings.count(Wording.unnamed)) == (3 * len(edits), 76)
        assert all(edit.request.chat_prompt.begun for edit in edits)
    assert sum(can_be_asked(edit.request) for edit in edits) > 0.9 * len(edits)
