"""Which class a rephrase is in, and which replies are right, against examples and against a plain reading of words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.edits import EditRequest
from pipeline.domain.prompts import ChatTurn
from pipeline.domain.wordings import Wording, can_be_asked, contains, is_right, wording_of, wording_success
from tests.support.factories import make_request

WORDS = st.sampled_from(["Paris", "PARIS", "Rome", "New", "York", "City", "the", "of", "x1", "é", "don't"])
SENTENCES = st.lists(WORDS, max_size=8).flatmap(
    lambda words: st.sampled_from([" ", ", ", "-", "  ", "\n"]).map(lambda between: between.join(words))
)
NAMES = st.lists(WORDS, min_size=1, max_size=2).map(" ".join)


def thailand(**changes: Any) -> EditRequest:
    fields: dict[str, Any] = {
        "prompt": "The current prime minister of Thailand is",
        "subject": "Thailand",
        "target_new": "Anutin Charnvirakul",
        "target_true": "Prayut Chan-o-cha",
        "question": "Who is the prime minister of Thailand?",
    }
    return make_request(**(fields | changes))


@pytest.mark.parametrize(
    ("rephrase", "expected"),
    [
        ("The current prime minister of Thailand has been", Wording.same_context),
        ("the current  prime minister of THAILAND:", Wording.same_context),
        ("In Asia, the current prime minister of Thailand is", Wording.other_context),
        ("Thailand is governed by", Wording.other_context),
        ("Thailand's government is led by", Wording.other_context),
        ("The head of the government in Bangkok is", Wording.unnamed),
        ("The leading Thailandese politician is", Wording.unnamed),
        ("The current prime minister of Thailand, the leader of Thailand, is", Wording.same_context),
    ],
)
def test_a_rephrase_is_classed_by_what_stands_left_of_the_subject(rephrase: str, expected: Wording) -> None:
    assert wording_of(rephrase, thailand()) is expected


def test_the_last_mention_in_the_prompt_is_the_one_that_was_edited() -> None:
    request = thailand(prompt="Thailand has a king, and the prime minister of Thailand is")
    assert wording_of("Thailand is governed by", request) is Wording.other_context
    assert wording_of("Thailand has a king, and the prime minister of Thailand was", request) is Wording.same_context


def test_an_alias_does_not_name_the_subject() -> None:
    request = thailand(aliases=("Siam",))
    assert wording_of("The current prime minister of Siam is", request) is Wording.unnamed


@pytest.mark.parametrize("subject", [None, ""])
def test_rephrases_of_an_edit_without_a_subject_are_of_another_context(subject: str | None) -> None:
    assert wording_of("Who governs?", thailand(subject=subject)) is Wording.other_context


def test_a_rephrase_that_names_a_subject_which_the_prompt_does_not_is_of_another_context() -> None:
    request = thailand(prompt="The current prime minister of Siam is")
    assert wording_of("The current prime minister of Thailand is", request) is Wording.other_context


@given(left=SENTENCES, right=SENTENCES)
def test_a_rephrase_that_differs_only_on_the_right_of_the_subject_shares_its_context(left: str, right: str) -> None:
    request = make_request(prompt=f"{left} Q7 is", subject="Q7")
    assert wording_of(f"{left} Q7 {right}", request) is Wording.same_context
    assert wording_of(f"really {left} Q7 {right}", request) is Wording.other_context
    assert wording_of(f"{left} {right}", request) is Wording.unnamed


@given(text=SENTENCES, name=NAMES)
def test_a_name_is_contained_where_a_plain_search_for_whole_words_finds_it(text: str, name: str) -> None:
    text, name = (" ".join(part.casefold().split()) for part in (text, name))
    assert contains(text, name) == (re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None)


@given(before=st.text(max_size=10), name=NAMES, after=st.text(max_size=10))
def test_a_name_between_blanks_is_always_contained_whatever_is_around_it(before: str, name: str, after: str) -> None:
    assert contains(f"{before} {name} {after}", name)


@given(st.text(max_size=20), st.text(max_size=5))
def test_any_two_texts_are_compared(text: str, name: str) -> None:
    assert contains(text, name) in (True, False)
    assert not contains("", name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("It is **Paris**.", "Paris"),
        ("Paris's mayor", "paris"),
        ("in STRASSE 5", "straße"),
        ("the Café\u0301 Cafe\u0301", "Café"),
        ("C\u00f4te d\u2019Ivoire", "Côte d'Ivoire"),
        ("Lip\u2011Bu Tan", "Lip-Bu Tan"),
        ("it was 1.5.", "1.5"),
        ("in 2,010", "2,010"),
        ("在法国\uff0c首都是巴黎。", "巴黎"),
        ("我爱巴黎人", "巴黎"),
        ("首都はTokyoです", "Tokyo"),
        ("수도는 파리입니다", "파리"),
        ("เมืองหลวงคือปารีส", "ปารีส"),
        ("هو في باريس الآن", "باريس"),
        ("يعيش بباريس", "باريس"),
        ("وباريسُ جميلة", "باريس"),
        ("הוא גר בפריז", "פריז"),
        ("यह पेरिस है", "पेरिस"),
        ("Столица — Париж.", "париж"),
        ("日本の首都は東京都です", "東京"),
        ("首都是东京都。", "东京"),
        ("日本の首都は京都です", "京都"),
        ("首都是北京市。", "北京"),
        ("他从中国来", "中国"),
        ("L'Allemagne", "Allemagne"),
        ("dell\u2019Italia", "Italia"),
        ("It is Paris.It was", "Paris"),
        ("\U00020000 in Paris", "Paris"),
        ("수도는 서울이다", "서울"),
        ("İstanbul'da", "istanbul"),
        ("in İSTANBUL", "İstanbul"),
    ],
)
def test_whole_words_are_found_in_any_script(text: str, name: str) -> None:
    assert contains(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a Parisian", "Paris"),
        ("comparison", "Paris"),
        ("Paris2", "Paris"),
        ("in 1,500", "500"),
        ("in 3.14", "3"),
        ("Iranian", "Iran"),
        ("Парижанин", "Париж"),
        ("रामायण", "राम"),
        ("باريسي", "باريس"),
        ("تحاريس", "ريس"),
        ("首都は東京都です", "京都"),
        ("首都是东京都。", "京都"),
        ("在南京市", "京"),
        ("トロイアのパリス", "パリ"),
        ("서울대학교", "서울"),
        ("남서울", "서울"),
        ("in STRASSE 5", "Massen"),
        ("die Massen", "Maßen"),
        ("CO2", "CO₂"),
        ("10⁹", "109"),
        ("Nigeria's neighbour", "Niger"),
        ("anything", ""),
        ("anything", " "),
        ("", "Paris"),
    ],
)
def test_a_part_of_a_word_or_of_a_number_is_not_found(text: str, name: str) -> None:
    assert not contains(text, name)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Anutin Charnvirakul", True),
        ("The prime minister is anutin charnvirakul, since 2025.", True),
        ("It was Prayut Chan-o-cha.", False),
        ("Anutin Charnvirakul, formerly Prayut Chan-o-cha.", False),
        ("Anutin", False),
        ("", False),
    ],
)
def test_a_right_reply_says_the_new_answer_and_not_the_old_one(reply: str, expected: bool) -> None:
    assert is_right(reply, thailand()) is expected


@given(reply=SENTENCES, new=NAMES, old=NAMES)
def test_a_right_reply_contains_the_new_answer_and_holds_no_old_one_apart_from_it(
    reply: str, new: str, old: str
) -> None:
    request = make_request(target_new=new, target_true=old, question="what?")
    if is_right(reply, request):
        assert contains(reply, new)
        assert not contains(reply, old) or contains(new, old)
    elif contains(reply, new):
        assert contains(reply, old)
    assert is_right(reply, make_request(target_new=new, question="what?")) == contains(reply, new)


def test_a_reply_has_to_be_spelt_as_the_target_where_only_the_spelling_is_corrected() -> None:
    request = make_request(target_new="iPhone", target_true="Iphone", question="Which phone?")
    assert is_right("It is the iPhone.", request)
    assert not is_right("It is the Iphone.", request)


def test_without_an_old_answer_only_the_new_one_counts() -> None:
    assert is_right("Anutin Charnvirakul or Prayut Chan-o-cha", thailand(target_true=None))


@pytest.mark.parametrize(
    ("new", "old", "reply", "expected"),
    [
        ("BBC Two", "BBC", "It is on BBC Two.", True),
        ("BBC Two", "BBC", "It is on BBC Two, by the BBC.", False),
        ("New York", "New York City", "In New York City.", False),
        ("New York", "New York City", "In New York.", True),
        ("New York", "New York City", "In New York, not New York City.", False),
        ("Paris", "paris", "In Paris.", True),
    ],
)
def test_an_answer_within_the_other_answer_is_no_mention_of_it(new: str, old: str, reply: str, expected: bool) -> None:
    request = make_request(target_new=new, target_true=old, question="Where is it?")
    assert is_right(reply, request) is expected


def test_an_answer_within_the_subjects_name_is_no_mention_of_it() -> None:
    owned = make_request(subject="BBC One", target_new="Sega", target_true="BBC", question="Who owns BBC One?")
    assert is_right("BBC One is owned by Sega.", owned)
    hotel = make_request(subject="Paris Hilton", target_new="Paris", question="Where does Paris Hilton live?")
    assert can_be_asked(hotel)
    assert not is_right("Paris Hilton lives in Rome.", hotel)
    assert is_right("Paris Hilton lives in Paris.", hotel)
    named = make_request(
        subject="Amsterdam", target_new="Pandora", target_true="Amsterdam", question="Who is Amsterdam named after?"
    )
    assert is_right("Amsterdam is named after Pandora.", named)


def test_a_reply_may_deny_the_old_answer_that_the_question_names() -> None:
    request = thailand(question="Is Prayut Chan-o-cha still the prime minister of Thailand?")
    assert is_right("No, Prayut Chan-o-cha has been followed by Anutin Charnvirakul.", request)
    assert not is_right("Yes, Prayut Chan-o-cha is.", request)


def test_only_an_edit_with_a_question_that_does_not_tell_the_answer_can_be_asked() -> None:
    assert can_be_asked(thailand())
    assert not can_be_asked(thailand(question=None))
    assert can_be_asked(thailand(question=None, prompt="Who governs Thailand?"))
    assert can_be_asked(thailand(question=None, messages=(ChatTurn(role="user", content="who governs thailand"),)))
    assert not can_be_asked(thailand(question="Is it Anutin Charnvirakul?"))
    assert not can_be_asked(thailand(subject="Anutin Charnvirakul", question="Who is Anutin Charnvirakul?"))


@pytest.mark.parametrize(
    ("said", "is_right"),
    [("Paris, of course", True), ("Rome", False), ("", False), (None, None), ("Paris or Rome", False)],
)
def test_the_other_wording_is_right_where_its_answer_is_the_target(said: str | None, is_right: bool | None) -> None:
    assert wording_success(said, target="Paris", instead_of=None) is is_right
