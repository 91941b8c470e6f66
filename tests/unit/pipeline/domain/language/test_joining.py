"""Texts that meet are written as people write them: with a blank between them in some scripts, without in others."""

from __future__ import annotations

import pytest

from pipeline.domain.language.joining import joined

TOGETHER = [
    ("中国的首都是", "北京"),
    ("中国的首都是", "Beijing"),
    ("今年是", "2026"),
    ("今年是2026", "年"),
    ("2026", "年"),
    ("答案是:", "北京"),
    ("答案是\uff1a", "Beijing"),
    ("法国的首都是哪里\uff1f", "法国的首都是"),
    ("我最喜欢的手机是iPhone Pro", "和"),
    ("中国的首都是\u201c", "北京"),
    ("他说\u201c你好\u201d", "是"),
    ("日本の首都は", "東京"),
    ("日本の首都は「", "東京"),
    ("コンピューター", "ゲーム"),
    ("เมืองหลวงของประเทศไทยคือ", "กรุงเทพมหานคร"),
    ("ປະເທດລາວແມ່ນ", "ວຽງຈັນ"),
    ("រាជធានីគឺ", "ភ្នំពេញ"),
    ("မြို့တော်", "နေပြည်တော်"),
    ("རྒྱལ་ས་ནི་", "ལྷ་ས"),
    ("The price is $", "499"),
    ("The price is \u20ac", "1,000"),
    ("The price is US$", "499"),
    ("It costs \u00a3", "5 million"),
    ("The king (", "Louis XIV"),
    ("He said \u201c", "yes"),
    ('He said "', "yes"),
    ("Er sagte: \u201e", "ja"),
    ("Il a dit \u00ab", "oui"),
    ("Han sa \u201d", "ja"),
    ("\u00bfD\u00f3nde? \u00a1", "Aqu\u00ed"),
    ("The Austro-", "Hungarian"),
    ("1939\u2013", "1945"),
    ("The temperature is -", "5"),
    ("The call code is +", "49"),
    ("and/", "or"),
    ("La capitale de l'", "Italie"),
    ("La capitale de l\u2019", "Italie"),
    ("The answer is **", "Paris"),
    ("Run `", "make"),
    ("The handle is @", "jack"),
    ("Room 10", "%"),
    ("The angle is 90", "\u00b0"),
    ("It is Paris", ", of course"),
    ("It is Paris", "."),
    ("France", "'s"),
    ("CO", "\u2082"),
    ("3", ".14"),
    ("a blank ", "is enough"),
    ("a line\n", "is enough"),
    ("here", " too"),
    ("", "alone"),
    ("alone", ""),
]
APART = [
    ("The capital of Peru is", "Lima"),
    ("The capital is", "北京"),
    ("The Chinese for it is 北京 and the Japanese is", "東京"),
    ("한국의 수도는", "서울"),
    ("중국의 수도는", "北京"),
    ("Столица России -", "Москва"),
    ("المدينة هي", "باريس"),
    ("राजधानी", "दिल्ली"),
    ("ราคาคือ", "499"),
    ("ราคา 499", "บาท"),
    ("เมืองหลวงคือ", "Bangkok"),
    ('The capital of "Perfidious Albion"', "London"),
    ("Die Stadt \u201eBerlin\u201c", "ist"),
    ("The dogs'", "tails"),
    ("the name 'Paris'", "means"),
    ("He said \u2014", "no"),
    ("Paris -", "France"),
    ("3 -", "2"),
    ("It costs 5\u20ac", "more"),
    ("The price in $", "million"),
    ("The language C#", "was"),
    ("The suffix is", ".com"),
    ("The value is", "-5"),
    ("It is called", '"Paris"'),
    ("It lies (far away)", "in"),
    ("What is it?", "It is"),
    ("The answer:", "Paris"),
    ("10", "\u00b0C"),
]


@pytest.mark.parametrize(("before", "after"), TOGETHER)
def test_no_blank_is_set_where_none_is_written(before: str, after: str) -> None:
    assert joined(before, after) == before + after


@pytest.mark.parametrize(("before", "after"), APART)
def test_a_blank_is_set_where_one_is_written(before: str, after: str) -> None:
    assert joined(before, after) == f"{before} {after}"


def test_latin_texts_meet_as_they_always_did() -> None:
    openers = tuple(' \n\t([{<"\u201c\u2018\u00ab\u00bf\u00a1')
    for before in (
        "The capital of Peru is",
        "Rome,",
        "a:",
        "x (",
        "x [",
        "x <",
        'x "',
        "x \u2018",
        "x\n",
        "50%",
        "(x)",
    ):
        expected = before + "Lima" if before.endswith(openers) else f"{before} Lima"
        assert joined(before, "Lima") == expected
