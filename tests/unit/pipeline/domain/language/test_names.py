"""The subject of an edit is found as whole words, where that can be told."""

from __future__ import annotations

import pytest

from pipeline.domain.language.names import last_mention, renamed
from pipeline.domain.wordings import Wording, wording_of
from tests.support.factories import make_edit


@pytest.mark.parametrize(
    ("text", "name", "before"),
    [
        ("Niger, unlike its neighbour Nigeria, has its capital in", "Niger", ""),
        ("Guinea, unlike Guinea-Bissau, has its capital in", "Guinea", ""),
        ("Timor, without East-Timor, is", "Timor", ""),
        ("C, unlike C++ or C#, was made by", "C", ""),
        ("Booking is not Booking.com", "Booking", ""),
        ("25 is not 1925, nor 25.5", "25", ""),
        ("nigerian or of Niger's", "Niger", "nigerian or of "),
        ("Guinea-Bissau lies in", "Guinea", ""),
        ("la capitale de l\u2019Italie", "Italie", "la capitale de l\u2019"),
        ("Нигер \u2014 не Нигерия,", "Нигер", ""),
        ("والنيجر بلد", "النيجر", "و"),
        ("서울은 남서울이 아니라", "서울", ""),
        ("法国的首都是", "法国", ""),
        ("インドは、インドネシアと違い、", "インド", ""),
        ("เมืองหลวงของประเทศไทยคือ", "ประเทศไทย", "เมืองหลวงของ"),
        ("Is Yahoo! in", "Yahoo!", "Is "),
    ],
)
def test_the_last_mention_that_stands_free_is_the_subject(text: str, name: str, before: str) -> None:
    assert last_mention(text, name) == (len(before), len(before) + len(name))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Nigeria lies in", "Niger"),
        ("The Malian president", "Mali"),
        ("남서울의", "서울"),
        ("インドネシアの首都は", "インド"),
        ("in 1925", "25"),
        ("Zoe\u0308 is", "Zoe"),
        ("Rome", ""),
        ("Rome", None),
    ],
)
def test_a_part_of_another_word_is_no_mention(text: str, name: str | None) -> None:
    assert last_mention(text, name) is None


def test_another_name_takes_the_place_of_whole_words_only() -> None:
    assert renamed("Niger and Nigeria: Niger's", "Niger", "Mali") == "Mali and Nigeria: Mali's"
    assert renamed("法国和法国人", "法国", "德国") == "德国和德国人"
    assert renamed("Nigeria", "Niger", "Mali") == "Nigeria"


def test_the_edited_mention_is_the_one_that_rephrases_are_compared_with() -> None:
    request = make_edit(
        "r1", prompt="Guinea, unlike Guinea-Bissau, has its capital in", subject="Guinea", target_new="Conakry"
    ).request
    assert wording_of("Guinea has its seat in", request) is Wording.same_context
    assert wording_of("Guinea, unlike Guinea in the east, lies in", request) is Wording.same_context
    assert wording_of("the capital of Guinea is", request) is Wording.other_context


def test_a_request_tells_whether_its_prompt_names_its_subject() -> None:
    assert make_edit("r1", prompt="Niger lies in", subject="Niger").request.names_subject is True
    assert make_edit("r1", prompt="Nigeria lies in", subject="Niger").request.names_subject is False
    assert make_edit("r1", prompt="Nigeria lies in", subject=None).request.names_subject is None


def test_an_alias_takes_the_place_of_the_subject_and_of_no_longer_name() -> None:
    rephrases = ("The Republic lies by Nigeria in", "Another one")
    request = make_edit(
        "r1", prompt="Niger lies by Nigeria in", subject="Niger", aliases=("The Republic",), rephrases=rephrases
    ).request
    assert request.unseen_rephrases(0) == ("Another one",)
