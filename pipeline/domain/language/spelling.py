"""When two spellings are one.

What a reader sees as the same letters is folded: case, width, ligatures, forms of presentation, the stretched line of
Arabic, marks that nobody sees, and blanks. What a reader sees as another sign stays: super- and subscripts, fractions,
circled and mathematical letters, accents and vowel marks, the German sharp s beside a double s.

    normalised("ＴＯＫＹＯ\\u3000Tower") == "tokyo tower"
    normalised("CO\\u2082") != normalised("CO2")
"""

from __future__ import annotations

import unicodedata

_SEEN = ("<super>", "<sub>", "<fraction>", "<circle>", "<font>")
"""Kinds of compatibility characters, in Unicode's words, that differ for a reader from what they are made of."""
_UNSEEN = frozenset("\u00ad\u061c\u0640\u180e\u200b\u200e\u200f\u2060\ufeff") | frozenset(
    chr(code) for first, last in ((0x202A, 0x202E), (0x2066, 0x2069)) for code in range(first, last + 1)
)
"""Marks of direction and of where a line may end, and the line that only stretches an Arabic word."""
_DOTTED_I = "\u0130"
"""Turkish capital i with a dot, whose small letter is the usual i."""


class _Letters(dict[int, str]):
    """A table of what is written for a character, which fills itself: `str.translate` reads it at the speed of C."""

    def __missing__(self, code: int) -> str:
        self[code] = _plain(chr(code))
        return self[code]


class _SmallLetters(dict[int, str]):
    """A table of small letters, one for one, so that a place in a text stays the same."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        folded = char.casefold() if len(char.casefold()) == 1 else char.lower()
        self[code] = "i" if char == _DOTTED_I else folded
        return self[code]


_LETTERS, _SMALL_LETTERS = _Letters(), _SmallLetters()


def normalised(text: str) -> str:
    """Return a text as it is compared with others: small, plain letters with single blanks."""
    if text.isascii():
        return " ".join(text.lower().split())
    return unicodedata.normalize("NFC", lowered(as_written(text)))


def as_written(text: str) -> str:
    """Return a text in plain letters with single blanks; capitals stay."""
    plain = unicodedata.normalize("NFC", text).translate(_LETTERS)
    return " ".join(unicodedata.normalize("NFC", plain).split())


def lowered(text: str) -> str:
    """Return a text in small letters, of the same length."""
    return text.translate(_SMALL_LETTERS)


def exact(text: str) -> str:
    """Return a target as it is compared with others: without outer blanks and in Unicode's composed form."""
    return unicodedata.normalize("NFC", text.strip())


def _plain(char: str) -> str:
    """Return what a character is only another form of; the character itself where it is none."""
    if char in _UNSEEN:
        return ""
    kind, *codes = unicodedata.decomposition(char).split() or ("",)
    is_accent = len(codes) > 1 and codes[0] == "0020"  # an accent by itself, which is more than a blank
    if not kind.startswith("<") or kind in _SEEN or is_accent:
        return char
    return "".join(_plain(chr(int(code, 16))) for code in codes)
