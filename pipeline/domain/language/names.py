"""Where a name stands in a text just as it is spelled, as whole words: the subject of an edit in its prompt.

    last_mention("Niger, unlike its neighbour Nigeria, lies in", "Niger")   # (0, 5)
    last_mention("Nigeria lies in", "Niger")                                # None

Where some mentions stand free and others are part of a longer name ("Guinea" in "Guinea-Bissau"), only those count that
stand free. Scripts without blanks show no words: where ICU sees none in them, a name is found anywhere, but for
katakana, where a run of letters is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.domain.language.words import Span, begins_word, ends_word, is_unspaced, script

_LONGER_BEHIND = re.compile(r"[-\u2010\u2011.&@][^\W_]|[+#]")
"""What goes on with a name behind it: `Guinea-Bissau`, `Booking.com`, `C++`."""
_ALIKE = str.maketrans("\u2018\u2019\u02bc", "'''")
"""Apostrophes, each as the one that words are parted at."""
_LONGER_BEFORE = re.compile(r"[^\W_][-\u2010\u2011.&@]")
"""What a name goes on with: `Timor` in `East-Timor`."""


def named_at(text: str, name: str) -> list[Span]:
    """Return where a name stands in a text as whole words, in order; a name of nothing stands nowhere."""
    found = list(_places(text, name)) if name else []
    said = text.translate(_ALIKE)
    whole = [(start, end) for start, end in found if begins_word(said, start, end) and ends_word(said, end)]
    free = [span for span in whole if not _is_of_longer(text, span)]
    return free or whole or [span for span in found if not _is_in_spaced_word(text, span)]


def last_mention(text: str, name: str | None) -> Span | None:
    """Return where a name stands for the last time; None where it does not, or there is no name."""
    return next(reversed(named_at(text, name or "")), None)


def renamed(text: str, name: str, other: str) -> str:
    """Return a text with another name wherever this one stands as whole words."""
    parts, done = [], 0
    for start, end in named_at(text, name):
        if start >= done:  # one that overlaps the one before is gone with it
            parts += [text[done:start], other]
            done = end
    return "".join((*parts, text[done:]))


def _places(text: str, name: str) -> Iterator[Span]:
    start = text.find(name)
    while start >= 0:
        yield start, start + len(name)
        start = text.find(name, start + 1)


def _is_of_longer(text: str, span: Span) -> bool:
    start, end = span
    behind = _LONGER_BEHIND.match(text, end) if end and not _is_unspaced(text[end - 1]) else None
    return behind is not None or (start > 1 and _LONGER_BEFORE.match(text, start - 2) is not None)


def _is_in_spaced_word(text: str, span: Span) -> bool:
    """Return whether a span begins or ends within a word of a script that shows where words end."""
    return any(0 < place < len(text) and _is_one_word(text[place - 1], text[place]) for place in span)


def _is_one_word(before: str, after: str) -> bool:
    is_katakana = script(before).startswith("KATAKANA") and script(after).startswith("KATAKANA")
    return is_katakana or not (_is_unspaced(before) or _is_unspaced(after))


def _is_unspaced(char: str) -> bool:
    return is_unspaced(char) and script(char) != "HANGUL"
