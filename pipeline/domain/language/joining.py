"""Puts two texts together as they would be written: with a blank between them, or without one.

Everything that meets does so here: a prompt and its target, a question and the beginning of its answer.

    joined("The capital of Peru is", "Lima")        # "The capital of Peru is Lima"
    joined("The price is $", "499")                 # "The price is $499"
    joined("\u4e2d\u56fd\u7684\u9996\u90fd\u662f", "\u5317\u4eac")  # Chinese: no blank

The text before decides. Chinese and Japanese set no blank, whatever follows. Thai, Lao, Khmer, Burmese and Tibetan set
none between their own words, but around words and figures of others. All other scripts set blanks, also before a word
of Chinese.
"""

from __future__ import annotations

import unicodedata

import regex

_EAST = r"\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{sc=Yi}\u3001-\u303f\uff01-\uff9f\uffe0-\uffe6"
"""Scripts without blanks, and their punctuation."""
_SOUTH = (
    r"\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}\p{sc=Tibetan}\p{sc=Javanese}\p{sc=Balinese}"
    r"\p{sc=Tai_Le}\p{sc=New_Tai_Lue}\p{sc=Tai_Tham}\p{sc=Tai_Viet}"
)
"""Scripts whose blanks stand between sentences and around what is foreign."""
_UNSPACED = regex.compile(f"[{_EAST}{_SOUTH}]")
_IS_EAST = regex.compile(f"[{_EAST}]")
_LAST_UNSPACED = regex.compile(f"(?r)[{_EAST}{_SOUTH}]")
_WORD = regex.compile(r"[\p{L}\p{N}]")
_BLANK = regex.compile(r"[\s\u200b\u2060\ufeff]")
"""White space, and what takes its place without being seen."""
_SENTENCE_ENDS = "\u0f0d\u0f0e\u0f0f\u0f11\u0f14\u104a\u104b\u17d4\u17d5"
"""Tibetan, Burmese and Khmer marks that a blank follows."""
_HYPHENS, _DASHES = "-\u2010\u2011\u2212", "\u2013\u2014\u2015"
_APOSTROPHES = "'\u2019\u02bc"
_POSSESSIVE = regex.compile(r"\p{L}{2}[sSxXzZ]$")
"""A word before an apostrophe that ends it rather than joins it to the next: `the dogs'`, but not `l'`."""
_PAIRS = {"\u201c": "\u201e", "\u2018": "\u201a", "\u00ab": "\u00bb", "\u2039": "\u203a"}
"""Quotes that open, unless another sort has opened before them, as in German."""
_ATTACHED = regex.compile(
    r"[,;?!\u2026\p{M}\p{Pe}\u2122\u00ae\u00b2\u00b3\u00b9\u2070-\u209c\u3001\u3002\uff01\uff05\uff0c\uff0e\uff1a\uff1b\uff1f]"
    r"|[:](?![-()DPp])"  # no smiley
    r"|\.(?!\w)"  # a full stop, but not `.com`
    r"|['\u2019](?:s|t|d|m|re|ve|ll)(?!\w)"
)
"""How a text begins that is written without a blank behind any other."""
_BEHIND_FIGURES = regex.compile(r"[%\u2030\u2031\u2032\u2033\u00a2]|\u00b0(?!\s*\p{L})|\.\d")
"""How a text begins that is written without a blank behind a figure."""


def joined(before: str, after: str) -> str:
    """Return two texts as one, with a blank between them if one is written there."""
    return f"{before} {after}" if _is_blank_between(before, after) else before + after


def _is_blank_between(before: str, after: str) -> bool:
    if not before or not after or _BLANK.match(before[-1]) or _BLANK.match(after):
        return False
    return not (_binds_behind(before, after) or _binds_before(before, after)) and _context_sets_blanks(before, after)


def _context_sets_blanks(before: str, after: str) -> bool:
    """Return whether the script at the end of a text sets a blank before another text.

    Words of another script, figures and signs count to the script that they are written together with.
    """
    last = _LAST_UNSPACED.search(before)
    if last is None:  # figures alone take the habits of what they count
        return _WORD.search(before) is None or bool(regex.search(r"\p{L}", before)) or not _UNSPACED.match(after)
    behind = before[last.end() :]
    if _BLANK.match(behind) or last[0] in _SENTENCE_ENDS:
        return True
    if _IS_EAST.match(last[0]):
        return False
    word = _WORD.search(after)
    return word is not None and not _UNSPACED.match(word[0])


def _binds_behind(before: str, after: str) -> bool:
    """Return whether a text ends with a sign that is written together with what follows it."""
    sign, rest = before[-1], before[:-1]
    kind, is_free = unicodedata.category(sign), _is_free(rest)
    if kind == "Ps" or sign in "<\u00bf\u00a1/\\":
        return True
    if kind == "Sc":
        return after[0].isdigit() if rest[-1:].isalpha() else not (rest[-1:].isdigit() or after[0].islower())
    if sign in "#@":
        return (is_free or sign == "@") and after[0].isalnum()
    if sign in _HYPHENS + _DASHES + "+\u00b1":
        return _binds_as_hyphen(before, after)
    if sign in "*_":
        run = before[len(before.rstrip(sign)) :]
        return _is_free(before[: -len(run)]) and (len(run) > 1 or after[0].isalpha())
    return _opens(sign, rest)


def _binds_as_hyphen(before: str, after: str) -> bool:
    """Return whether a hyphen or dash joins two words, or is the sign of a number; a free one stands for a pause."""
    rest = before.rstrip(_HYPHENS + _DASHES + "+\u00b1")
    if _is_free(rest):
        return after[0].isdigit() and not rest.rstrip()[-1:].isdigit()
    return before[-1] not in "+\u00b1"


def _opens(sign: str, rest: str) -> bool:
    """Return whether a quote opens what follows, or an apostrophe joins it to the word before."""
    if sign in _PAIRS:
        return rest.count(_PAIRS[sign]) <= rest.count(sign)
    if sign in '"`':
        return _is_free(rest) or (rest.count(sign) % 2 == 0 and not rest[-1:].isdigit())
    if sign in _APOSTROPHES:
        opener = "\u2018\u201a" if sign == "\u2019" else sign
        is_closing = regex.search(rf"(?:^|[\s\p{{Ps}}])[{opener}][^{opener}{sign}]*$", rest) is not None
        return _is_free(rest) or not (is_closing or _POSSESSIVE.search(rest))
    return unicodedata.category(sign) == "Pf" and _is_free(rest)


def _is_free(rest: str) -> bool:
    """Return whether a sign behind a text does not touch a word."""
    return (
        not rest or bool(_BLANK.match(rest[-1])) or unicodedata.category(rest[-1]) in ("Ps", "Pi") or rest[-1] in "=/"
    )


def _binds_before(before: str, after: str) -> bool:
    """Return whether a text begins with a sign that is written together with what stands before it."""
    if _ATTACHED.match(after) or (before[-1].isdigit() and _BEHIND_FIGURES.match(after)):
        return True
    if after[0] == "\u00bb":
        return before.count("\u00ab") > before.count("\u00bb")
    if after[0] == "\u201d":
        return before.count("\u201c") + before.count("\u201e") > before.count("\u201d")
    return after[0] == '"' and before.count('"') % 2 == 1 and not after[1:2].isalnum()
