"""Whether a text that a model said freely confirms a target.

A target is confirmed if the answer begins with it at a word boundary and does not run on into another answer. Both are
normalised first: NFKC, blanks folded, case ignored, an opening quote dropped. An answer runs on where its first line
goes on with a hyphen, a slash, or a capitalised word or a number with nothing but a blank (or `and`, `or`) between:

    confirms("Paris, the capital", "Paris")         # True, as is "Paris in 1900"
    confirms("Paris or Rome", "Paris")              # False
    confirms("New York University", "New York")     # False
"""

from __future__ import annotations

import re
import unicodedata

WORDS_AFTER = 2
"""Whole words after the target that settle whether the answer runs on."""

_RUNS_ON = re.compile(r"^(?:[-\u2010-\u2015/&]\s?|\s(?:(?:and|or)\s)?)(?P<word>\S)")


def confirms(answer: str, target: str) -> bool:
    """Return whether a free answer says the target and no other answer."""
    rest = _after(answer, target)
    if rest is None or (rest and rest[0].isalnum()):
        return False
    found = _RUNS_ON.match(rest)
    if found is None:
        return True
    word = found["word"]
    is_joined = not rest[0].isspace()
    return not (word.isupper() or word.isdigit() or (is_joined and word.isalpha()))


def is_settled(answer: str, target: str) -> bool:
    """Return whether more text could not change what `confirms` says, so that generation may stop."""
    rest = _after(answer, target)
    if rest is None:
        return not _folded(target).casefold().startswith(_line(answer).rstrip().casefold())
    is_ended = "\n" in answer.lstrip() or rest.startswith(tuple(".,;:!?)\"'\u201d"))
    return is_ended or not confirms(answer, target) or len(rest.split(" ")) > WORDS_AFTER + 1


def _after(answer: str, target: str) -> str | None:
    """Return what follows the target in the answer's first line, or None if the line does not begin with it."""
    line, wanted = _line(answer), _folded(target).casefold()
    if not line.casefold().startswith(wanted):
        return None
    for end in range(1, len(line) + 1):  # casefolding may change the length
        if line[:end].casefold() == wanted:
            return line[end:]
    return None


def _line(answer: str) -> str:
    first = answer.strip().split("\n")[0] if answer.strip() else ""
    is_cut = answer.endswith((" ", "\n"))
    return _folded(first).lstrip("\"'*_\u201c\u2018").lstrip() + (" " if is_cut and first else "")


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip()
