"""How a fact is worded: which class a rephrase is in, and whether a reply says the right answer.

Texts are compared as `normalised` leaves them, with one kind of apostrophe and of hyphen. A name is in a text where it
stands as whole words, which in Chinese no blanks set off:

    contains("Paris, of course", "paris")           # True
    contains("a Parisian cafe", "Paris")            # False
    contains("\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u5df4\u9ece", "\u5df4\u9ece")  # True
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache

from pipeline.domain.edits import EditRequest, normalised

Span = tuple[int, int]
"""Where a name begins in a text, and where it ends."""

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How Unicode's names of letters begin in scripts that set no blanks between words, or none before particles."""
_PREFIXES = re.compile(
    "[\u0648\u0641]?[\u0628\u0643\u0644]?(?:\u0627\u0644|\u0644)?"  # Arabic: and, so; in, like, to; the
    "|[\u05d5\u05d4\u05d1\u05db\u05dc\u05de\u05e9]{1,3}"  # Hebrew: and, the, in, like, to, from, that
)
"""Little words that are written together with the word behind them."""
_UNREAD = re.compile("[\u0640\u064b-\u0652\u0670\u0591-\u05bd\u05bf-\u05c7\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
"""Vowel marks of Arabic and Hebrew, which are written or left out, the stretched line, and marks of direction."""
_ALIKE = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'"} | dict.fromkeys(range(0x2010, 0x2016), "-"))
"""Apostrophes and hyphens that are one to a reader."""


class Wording(StrEnum):
    """How a rephrase words the fact, as far as an edit of the subject's key can notice."""

    same_context = "same_context"
    """The subject stands behind the same text as in the edit's prompt, so that a causal model sees the same key."""
    other_context = "other_context"
    """The subject is named behind other text."""
    unnamed = "unnamed"
    """The subject is not named: an alias or a description stands for it."""


def wording_of(rephrase: str, request: EditRequest) -> Wording:
    """Return the class of a rephrase.

    The edit's row is the last mention of the subject in its prompt, so that is what a rephrase is compared with; one
    mention behind the same text is enough. Where no subject is known, nothing says that a key is shared or that a name
    is left out: such rephrases are `other_context`.
    """
    if not request.subject:
        return Wording.other_context
    left = {before for _, before in _mentions_behind(rephrase, request.subject)}
    if not left:
        return Wording.unnamed
    edited = [before for _, before in _mentions_behind(request.prompt, request.subject)][-1:]
    return Wording.same_context if left.intersection(edited) else Wording.other_context


def contains(text: str, name: str) -> bool:
    """Return whether a name stands in a text as whole words; a name of nothing does not."""
    return bool(_mentions(_folded(text), _folded(name)))


def can_be_asked(request: EditRequest) -> bool:
    """Return whether a reply in a chat can show that an edit holds: there is a question, which does not say the answer.

    A reply that only takes up the question's words would be right where the question names the new answer.
    """
    return request.has_question and not _is_told(request, request.target_new)


def is_right(reply: str, request: EditRequest) -> bool:
    """Return whether a free reply to a request's question says the new answer, and not the old one.

    A mention within a longer name is none: neither "New York" in "New York City" where that is the other answer, nor
    "BBC" in the subject "BBC One". An old answer that the question itself names is not held against the reply, which
    may have to deny it.
    """
    said = _folded(reply)
    subjects, new, old = (
        _mentions(said, _folded(name or "")) for name in (request.subject, request.target_new, request.target_true)
    )
    is_said = any(not _is_inside(span, [*subjects, *old], or_equal=False) for span in new)
    is_old = any(not _is_inside(span, [*subjects, *new], or_equal=True) for span in old)
    return is_said and (not is_old or _is_told(request, request.target_true))


def _is_told(request: EditRequest, answer: str | None) -> bool:
    """Return whether the question names an answer, other than within the subject's longer name."""
    asked = _folded(request.chat_question.question)
    subjects, answers = (_mentions(asked, _folded(name or "")) for name in (request.subject, answer))
    return any(not _is_inside(span, subjects, or_equal=False) for span in answers)


def _is_inside(span: Span, others: Iterable[Span], *, or_equal: bool) -> bool:
    return any(start <= span[0] and span[1] <= end and (or_equal or span != (start, end)) for start, end in others)


def _mentions_behind(text: str, name: str) -> list[tuple[Span, str]]:
    """Return where a name stands in a text, each with what stands before it."""
    folded = _folded(text)
    return [(span, folded[: span[0]]) for span in _mentions(folded, _folded(name))]


def _mentions(text: str, name: str) -> list[Span]:
    """Return where a name stands in a text as whole words; both are folded."""
    if not name:
        return []
    found = ((match.start(), match.start() + len(name)) for match in re.finditer(f"(?={re.escape(name)})", text))
    return [(start, end) for start, end in found if _begins_word(text, start) and not _is_joined(text, end)]


def _begins_word(text: str, place: int) -> bool:
    if not _is_joined(text, place):
        return True
    start = place
    while start and _is_joined(text, start):
        start -= 1
    return _PREFIXES.fullmatch(text, start, place) is not None


def _is_joined(text: str, place: int) -> bool:
    """Return whether the characters before and after a place belong to one word or number."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if before.isdigit() and after in ".,":
        return text[place + 1 : place + 2].isdigit()
    if before in ".," and after.isdigit():
        return text[max(place - 2, 0) : place - 1].isdigit()
    return _is_of_word(before) and _is_of_word(after)


@lru_cache(maxsize=4096)
def _is_of_word(char: str) -> bool:
    """Return whether a character joins with its neighbours to a word that blanks set off from others."""
    is_letter = char.isalnum() or unicodedata.category(char).startswith("M")
    return is_letter and not unicodedata.name(char, "").startswith(_UNSPACED)


def _folded(text: str) -> str:
    return _UNREAD.sub("", normalised(text)).translate(_ALIKE)
