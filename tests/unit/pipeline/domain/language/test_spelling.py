"""Which spellings are one, and which are two."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.language.spelling import as_written, exact, lowered, normalised


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Tokyo  Tower\n", " tokyo\u00a0tower"),
        ("\uff34\uff2f\uff2b\uff39\uff2f\u3000Tower", "tokyo tower"),
        ("\uff84\uff73\uff77\uff6e\uff73", "\u30c8\u30a6\u30ad\u30e7\u30a6"),
        ("of\ufb01ce", "Office"),
        ("Cafe\u0301", "CAF\u00c9"),
        ("\u0645\u062d\u0640\u0640\u0645\u062f", "\u0645\u062d\u0645\u062f"),
        ("\ufe95\ufe8e\ufe91", "\u062a\u0627\u0628"),
        ("Tokyo\u200b", "Tokyo"),
        ("\u200fTokyo\ufeff", "Tokyo"),
        ("exam\u00adple", "example"),
        ("Henry \u2167", "henry viii"),
        ("5 \u338f", "5 kg"),
        ("\u2f08", "\u4eba"),
        ("\u03a3\u0399\u03a3\u03a5\u03a6\u039f\u03a3", "\u03c3\u03b9\u03c3\u03c5\u03c6\u03bf\u03c2"),
        ("\u0130STANBUL", "istanbul"),
        ("STRA\u1e9eE", "stra\u00dfe"),
        ("\u01f0", "J\u030c"),
    ],
)
def test_spellings_of_the_same_letters_are_one(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2\u2075", "25"),
        ("10\u2079", "109"),
        ("CO\u2082", "CO2"),
        ("Ma\u00dfen", "Massen"),
        ("x\u00bd", "x1/2"),
        ("1\u00bd", "11/2"),
        ("\u2460", "1"),
        ("\u211d", "R"),
        ("\u33a1", "m2"),
        ("1\u00ba", "1o"),
        ("Acme\u2122", "AcmeTM"),
        ("Zo\u00eb", "Zoe"),
        ("\u0131s\u0131", "isi"),
        ("\u0639\u0650\u0644\u0645", "\u0639\u064e\u0644\u0645"),
        ("New York", "NewYork"),
    ],
)
def test_what_a_reader_sees_as_another_sign_stays_another(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text(max_size=30))
def test_folding_twice_is_folding_once_and_small_letters_keep_their_places(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)
    assert len(lowered(as_written(text))) == len(as_written(text))
    assert normalised(unicodedata.normalize("NFD", text)) == normalised(text)


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_the_short_way_for_plain_letters_is_the_long_one(text: str) -> None:
    assert normalised(text) == normalised(text + "\u200b")


@given(st.text(max_size=10))
def test_targets_lose_their_outer_blanks_and_their_unicode_form_alone(text: str) -> None:
    assert exact(f" {text}\n") == exact(unicodedata.normalize("NFD", text))
    assert exact(text) == unicodedata.normalize("NFC", text.strip())
