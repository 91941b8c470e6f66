"""When a free answer confirms a target, and when it is known to."""

from __future__ import annotations

import pytest

from pipeline.domain.language.answers import confirms, first_line, is_settled


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Paris", "Paris"),
        (" paris.", "Paris"),
        ("Paris, the capital of France", "Paris"),
        ("Paris in the north", "Paris"),
        ('"Paris" is what', "Paris"),
        ("New\u00a0York.\n\nNew York is", "New York"),
        ("actor and director", "actor"),
        ("STRASSE.", "straße"),
        ("Lip-Bu Tan, who", "Lip-Bu Tan"),
        ("Leo XIV", "Leo XIV"),
        ("Paris\nLondon", "Paris"),
        ("Sega's new console", "Sega"),
        ("東京です。", "東京"),
        ("「東京」です。", "東京"),
        ("東京都です。", "東京"),
        ("東京と言われています。", "東京"),
        ("東京、日本の首都です", "東京"),
        ("キャンベラです。", "キャンベラ"),
        ("パリである", "パリ"),
        ("ブエノスアイレスが首都です", "ブエノスアイレス"),
        ("高市早苗首相です", "高市早苗"),
        ("ニューヨーク市です", "ニューヨーク"),
        ("서울특별시입니다", "서울"),
        ("กรุงเทพฯ ครับ", "กรุงเทพ"),
        ("奥巴马总统", "奥巴马"),
        ("Paris.It is", "Paris"),
        ("北京。", "北京"),
        ("北京市", "北京"),
        ("东京都。", "东京"),
        ("北京是中国的首都", "北京"),
        ("堪培拉位于澳大利亚", "堪培拉"),
        ("臺北\uff0c中華民國的首都", "臺北"),
        ("กรุงเทพมหานครครับ", "กรุงเทพมหานคร"),
        ("แคนเบอร์ราเป็นเมืองหลวง", "แคนเบอร์รา"),
        ("ປາຣີເປັນ", "ປາຣີ"),
        ("ភ្នំពេញគឺជារដ្ឋធានី", "ភ្នំពេញ"),
        ("နေပြည်တော်ဖြစ်သည်", "နေပြည်တော်"),
        ("서울입니다.", "서울"),
        ("서울이 수도입니다", "서울"),
        ("캔버라예요", "캔버라"),
        ("Москва.", "москва"),
        ("Берн — столица", "Берн"),
        ("باريس، عاصمة فرنسا", "باريس"),
        ("नई दिल्ली है।", "नई दिल्ली"),
        ("Paris\u2019s mayor", "Paris"),
        ("«Paris», la capitale", "Paris"),
        ("499 dollars", "499"),
        ("1,500.", "1,500"),
        ("CO₂ emissions", "CO₂"),
        ("\uff34\uff2f\uff2b\uff39\uff2f。", "Tokyo"),
    ],
)
def test_the_target_at_a_word_boundary_is_confirmed(answer: str, target: str) -> None:
    assert confirms(answer, target)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Parisian", "Paris"),
        ("Gitegaum.", "Gitega"),
        ("New York University", "New York"),
        ("Paris or Rome", "Paris"),
        ("Paris and London", "Paris"),
        ("Paris/London", "Paris"),
        ("Jean-Luc", "Jean"),
        ("X10, which", "X"),
        ("Apollo 11", "Apollo"),
        ("the city of Paris", "Paris"),
        ("", "Paris"),
        ("Par", "Paris"),
        ("京都です。", "東京"),
        ("東京都です。", "京都"),
        ("東京と大阪です。", "東京"),
        ("東京や大阪", "東京"),
        ("東京か京都です", "東京"),
        ("東京または大阪です", "東京"),
        ("東京・大阪", "東京"),
        ("東京大学です。", "東京"),
        ("東京都立大学です", "東京"),
        ("東京タワーです", "東京"),
        ("東京ではなく大阪です", "東京"),
        ("東京ではありません", "東京"),
        ("パリスです", "パリ"),
        ("北京大学", "北京"),
        ("Node.js", "Node"),
        ("東京ディズニーランドです", "東京"),
        ("ニューヨーク大学です", "ニューヨーク"),
        ("东京都大学", "东京"),
        ("北京和上海", "北京"),
        ("北京或上海", "北京"),
        ("北京不是首都", "北京"),
        ("北京人", "北京"),
        ("南京是", "京"),
        ("ปารีสและลอนดอน", "ปารีส"),
        ("서울과 부산", "서울"),
        ("서울 또는 부산", "서울"),
        ("서울대학교입니다", "서울"),
        ("서울이 아닙니다", "서울"),
        ("Москвич", "Москва"),
        ("Париж и Лондон", "Париж"),
        ("Paris et Londres", "Paris"),
        ("Paris und London", "Paris"),
        ("Paris is not the capital", "Paris"),
        ("Paris isn't it", "Paris"),
        ("باريس أو لندن", "باريس"),
        ("1,500", "1"),
        ("3.14", "3"),
        ("109", "10⁹"),
        ("CO2", "CO₂"),
        ("Massen", "Maßen"),
    ],
)
def test_another_answer_is_not_confirmed(answer: str, target: str) -> None:
    assert not confirms(answer, target)


@pytest.mark.parametrize(
    ("answer", "target", "old", "expected"),
    [
        ("iPhone.", "iPhone", "Iphone", True),
        ("Iphone.", "iPhone", "Iphone", False),
        ("IPHONE", "iPhone", "Iphone", False),
        ("Iphone", "iPhone", "Galaxy", True),
        ("Iphone", "iPhone", None, True),
    ],
)
def test_where_only_the_spelling_is_corrected_the_answer_has_to_be_spelt_so(
    answer: str, target: str, old: str | None, expected: bool
) -> None:
    assert confirms(answer, target, instead_of=old) is expected


@pytest.mark.parametrize(
    ("answer", "is_known"),
    [
        ("", False),
        ("Pa", False),
        ("Paris", False),
        ("Paris ", False),
        ("Paris,", True),
        ("Paris\n", True),
        ("Paris is the capital", True),
        ("Rome", True),
        ("Parking", True),
    ],
)
def test_an_answer_is_settled_once_more_text_cannot_change_it(answer: str, is_known: bool) -> None:
    assert is_settled(answer, "Paris") is is_known


@pytest.mark.parametrize(
    "whole", ["Paris, France", "Parisian way", "Paris University of", "Rome is", "Paris or Rome of", "Paris is fine so"]
)
def test_a_settled_answer_keeps_its_verdict(whole: str) -> None:
    verdicts = [confirms(whole[:end], "Paris") for end in range(len(whole) + 1) if is_settled(whole[:end], "Paris")]
    assert verdicts
    assert set(verdicts) == {confirms(whole, "Paris")}


@pytest.mark.parametrize(
    ("whole", "target"),
    [
        ("東京です。日本の首都です", "東京"),
        ("東京都です。日本の", "東京"),
        ("東京と大阪です。日本の", "東京"),
        ("東京と言われています。日本の", "東京"),
        ("東京ではありません。大阪です", "東京"),
        ("東京大学です。日本の", "東京"),
        ("北京是中国的首都。", "北京"),
        ("北京和上海都是", "北京"),
        ("서울입니다. 대한민국의 수도", "서울"),
        ("서울대학교입니다. 대한민국", "서울"),
        ("ปารีสและลอนดอน เป็น", "ปารีส"),
        ("กรุงเทพมหานครครับ เป็นเมือง", "กรุงเทพมหานคร"),
        ("Paris n'est pas la capitale de", "Paris"),
        ("Paris et Londres sont des", "Paris"),
        ("Paris is not the capital of", "Paris"),
    ],
)
def test_a_settled_answer_keeps_its_verdict_in_any_script(whole: str, target: str) -> None:
    verdicts = [confirms(whole[:end], target) for end in range(len(whole) + 1) if is_settled(whole[:end], target)]
    assert verdicts
    assert set(verdicts) == {confirms(whole, target)}


def test_the_first_bytes_of_a_letter_settle_nothing() -> None:
    assert not is_settled("東\ufffd", "東京")
    assert not is_settled("\ufffd", "東京")


def test_the_first_line_of_an_answer_is_that_which_says_something() -> None:
    said = ["", " \n", " Paris.\n\nThe answer", "\n\n Paris.\nIt", "Paris"]
    assert list(map(first_line, said)) == ["", " \n", " Paris.", "\n\n Paris.", "Paris"]
