"""Which name a prompt is probably about, where nobody says: the last run of capitalized words.

    guessed_subject("The head coach of FC Barcelona is")   # "FC Barcelona"
    guessed_subject("der Fluss ist lang")                  # None

Scripts without capitals have no such guess.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_](?:[\w.&-]*\w)?\.?")
_FIRST_WORDS = re.compile(
    "a|an|and|are|as|at|before|by|did|do|does|for|from|has|have|her|his|how|if|in|is|it|its|my|of|on|our|since|the"
    "|their|there|these|they|this|those|to|under|was|were|what|when|where|which|who|whom|whose|why|will|with"
    "|der|die|das|wer|wo|wie|le|la|les|el|los|las|il|lo|quel|quelle|qui|où|quién|qué|dónde",
    re.IGNORECASE,
)
"""Words that begin a sentence, and so are capitalized without being names."""
_TIMES = re.compile(
    "january|february|march|april|may|june|july|august|september|october|november|december"
    "|(?:mon|tues|wednes|thurs|fri|satur|sun)day",
    re.IGNORECASE,
)
"""Names of months and days, which a fact is seldom about."""


def guessed_subject(text: str) -> str | None:
    """Return the last run of capitalized words that is no date and no first word of a sentence; None without one."""
    runs: list[list[re.Match[str]]] = []
    for word in _WORD.finditer(text):
        if not _is_name(word, text):
            continue
        if runs and text[runs[-1][-1].end() : word.start()] == " ":
            runs[-1].append(word)
        else:
            runs.append([word])
    found = runs[-1] if runs else None
    return text[found[0].start() : found[-1].end()].removesuffix(".") if found else None


def _is_name(word: re.Match[str], text: str) -> bool:
    said = word.group()
    if not said[0].isupper() or _TIMES.fullmatch(said):
        return False
    begins = not text[: word.start()].strip(" \"'“„«¿¡") or text[: word.start()].rstrip().endswith((".", "?", "!", ":"))
    return not (begins and _FIRST_WORDS.fullmatch(said) is not None)
