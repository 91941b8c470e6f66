"""Where words begin and end, in any script: ICU's segmentation, with what particles and apostrophes change of it.

Where a script sets no blanks, ICU has a dictionary: Chinese, Japanese, Thai, Lao, Khmer and Burmese. A name that it
does not know falls into smaller parts, so that its ends are ends of words all the same. Three things are ours:

- An apostrophe between letters parts words, and a full stop before a capital: "Paris" is a word in "Paris's".
- Little words that are written together with a name belong to it no more than a blank would: articles of Arabic and
  Hebrew before it, particles of Korean behind it.
- In Chinese and Japanese the kind of place may follow: 北京 is a word in 北京市, and 東京 in 東京都, where 京都 is
  none.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import accumulate, pairwise

from icu4py.breakers import WordBreaker

from pipeline.domain.language.spelling import as_written, lowered

Span = tuple[int, int]
"""Where a name begins in a text, and where it ends."""

KINDS_OF_PLACE = "都道府县縣市区區州省国國郡町村镇鎮"
"""What may follow the name of a place in Chinese and Japanese without making it another name."""
_OF_CHINESE = "从從在是于於到由对對向往自和与與同跟为為叫比"
"""Little words before a name in Chinese: from, in, is, to, and, with, ..."""
_SHORTENED = "\u0e2f"
"""Thai sign behind a name whose end is left out."""
_PREFIXES = re.compile(
    "[\u0648\u0641]?[\u0628\u0643\u0644]?(?:\u0627\u0644|\u0644)?"  # Arabic: and, so; in, like, to; the
    "|[\u05d5\u05d4\u05d1\u05db\u05dc\u05de\u05e9]{1,3}"  # Hebrew: and, the, in, like, to, from, that
)
"""Little words that are written together with the word behind them."""
_PARTICLES = re.compile(
    "(?:특별자치시|특별시|광역시|시)?(?:은|는|이|가|을|를|의|에|도|만|과|와|로|으로|랑|이랑|하고|에서|에게|께서|부터|까지|보다|처럼|마다|밖에|조차|나|이나)*"
    "(?:이?라고|이?라는|이?란|이며|이고|이자|이지만|인데|인|임|이다|다|였다|이었다|입니다만|입니다|이?였습니다|이었습니다"
    "|예요|이에요|이?죠|이?지요|이?네요|요)?"
)
"""What is written together with the word before it in Korean: that it is a city, particles, forms of "to be"."""
_UNREAD = re.compile("[\u064b-\u0652\u0670\u0591-\u05bd\u05bf-\u05c7\u200c\u200d]")
"""Vowel marks of Arabic and Hebrew, which are written or left out, and unseen marks between letters."""
_ALIKE = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'"} | dict.fromkeys(range(0x2010, 0x2016), "-"))
"""Apostrophes and hyphens that are one to a reader."""
_UNSPACED = frozenset(
    "CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA HANGUL BOPOMOFO THAI LAO KHMER MYANMAR TIBETAN".split()  # noqa: SIM905
)
"""Scripts that set no blanks between words, or none before particles; so begin Unicode's names of their letters."""
_INSIDE = re.compile(r"(?<=[^\W\d_])(?:[':\u00b7]|\.(?![a-z]))(?=[^\W\d_])|_")
"""What stands between words although ICU takes it for a part of one."""


def as_said(text: str) -> str:
    """Return what somebody said in the form in which names are looked for in it; capitals stay."""
    return _UNREAD.sub("", as_written(text)).translate(_ALIKE)


def mentions(said: str, name: str) -> list[Span]:
    """Return where a name stands in a text as whole words, in either case; both are as `as_said` leaves them."""
    small = lowered(said)
    ends = {(match.start(), match.start() + len(name)) for match in _found(lowered(name), small)}
    if len(capitals := name.upper()) != len(name):  # the sharp s of Straße is SS in STRASSE, and only there
        ends |= {(match.start(), match.start() + len(capitals)) for match in _found(capitals, said)}
    return [(start, end) for start, end in sorted(ends) if begins_word(said, start, end) and ends_word(said, end)]


def begins_word(text: str, start: int, end: int) -> bool:
    """Return whether what stands at a span begins with the beginning of a word."""
    if is_boundary(text, start):
        return not _is_kind_of_place(text, start, end)
    word = max(place for place in boundaries(text) if place < start)
    return _PREFIXES.fullmatch(text, word, start) is not None


def ends_word(text: str, end: int) -> bool:
    """Return whether a word ends at a place, but for what a language writes together with it."""
    if is_boundary(text, end):
        return True
    if text[end] in KINDS_OF_PLACE + _SHORTENED and is_boundary(text, end + 1):
        return True
    word = min(place for place in boundaries(text) if place > end)
    return script(text[end]) == "HANGUL" and _PARTICLES.fullmatch(text, end, word) is not None


def is_boundary(text: str, place: int) -> bool:
    """Return whether no word goes on across a place."""
    return place in (0, len(text)) or place in boundaries(text)


@lru_cache(maxsize=256)
def boundaries(text: str) -> frozenset[int]:
    """Return the places in a text between which its words stand."""
    return frozenset(place for span in (*_segments(text), *_parted(text)) for place in span)


def num_words(text: str) -> int:
    """Return how many words a text has in any script; one with an apostrophe counts once."""
    return sum(any(char.isalnum() for char in text[start:end]) for start, end in _segments(text))


@lru_cache(maxsize=4096)
def script(char: str) -> str:
    """Return the first word of a character's name, which is its script: `LATIN`, `CJK`, `THAI`."""
    return unicodedata.name(char, "").partition(" ")[0]


def is_unspaced(char: str) -> bool:
    """Return whether a character is of a script that sets no blanks between words, or none before particles."""
    return char.isalpha() and script(char) in _UNSPACED


def _segments(text: str) -> list[Span]:
    # The segments' own places count UTF-16 units, so that what lies beyond the 16-bit plane would shift them.
    ends = list(accumulate(len(str(segment)) for segment in WordBreaker(text, "root"))) if text else []
    return list(pairwise([0, *ends]))


def _parted(text: str) -> list[Span]:
    return [match.span() for match in _INSIDE.finditer(text)]


def _found(name: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(f"(?={re.escape(name)})", text)) if name else []


def _is_kind_of_place(text: str, start: int, end: int) -> bool:
    """Return whether a span ends with the kind of a place whose name began before it: 京都 in 東京都."""
    before, name = text[:start], text[start:end]
    if len(name) < 2 or name[-1] not in KINDS_OF_PLACE or not before:
        return False
    if script(before[-1]) != "CJK" or before[-1] in _OF_CHINESE:
        return False
    return boundaries(before[-1] + name[:-1]) == {0, len(name)}
