"""Whether a text that a model said freely confirms a target.

A target is confirmed if the answer's first line begins with it, as whole words of its script, and does not run on into
another answer or deny it. Case, width and opening quotes are ignored. An answer runs on where a hyphen, a slash, or a
capitalised word or a number follows with nothing but a blank, or an "and" or "or" of many languages, between; where
scripts set no blanks, also where a noun follows that makes the name of something else:

    confirms("Paris, the capital", "Paris")         # True, as is "Paris in 1900"
    confirms("Paris or Rome", "Paris")              # False
    confirms("New York University", "New York")     # False
    confirms("東京です。", "東京")                   # True, as is 東京都です
    confirms("東京と大阪です。", "東京")             # False, as are 東京大学です and 東京ではなく大阪です
"""

from __future__ import annotations

import re

from pipeline.domain.language.spelling import exact, lowered
from pipeline.domain.language.words import (
    KINDS_OF_PLACE,
    as_said,
    boundaries,
    ends_word,
    is_unspaced,
    num_words,
    script,
)

WORDS_AFTER = 2
"""Whole words after the target that settle whether the answer runs on."""

_OPENING = " \"'*_\u201c\u201e\u00ab\u2039\u300c\u300e\u300a\u3008\u3010(\u00bf\u00a1"
_ENDING = tuple(".,;:!?)\"'\u201d\u00bb\u3002\u3001\u300d\u300f\u0964\u061f\u060c\u06d4")
_AND_OR = (
    "and|or|et|ou|y|o|e|und|oder|och|eller|og|lub|oraz|\u0438|\u0438\u043b\u0438|\u0442\u0430|\u0430\u0431\u043e"
    "|\u03ba\u03b1\u03b9|\u03ae"
)
_RUNS_ON = re.compile(rf"(?:[-/&\u00b7\u30fb]\s?|\s(?:(?:{_AND_OR})\s)?)(?P<word>\S)")
"""Another word or number, joined to the target or behind a blank."""
_OR_ANOTHER = re.compile(
    r"\s(?:\u0623\u0648|\u06cc\u0627|\u05d0\u05d5|\u0914\u0930|\u092f\u093e|또는|혹은|및|그리고)\s"
    r"|(?:과|와|이나|나|하고|이랑|랑)\s"
    r"|(?:と(?![言呼思考云称])|や|か|または|もしくは|あるいは|及び|および|並びに|或は)(?=[^\W\d_\u3041-\u309f])"
    r"|(?:和|与|與|或|或者|或是|以及|跟|还是|還是)(?=\w)"
    r"|\s?(?:และ|หรือ|ແລະ|ຫຼື|និង|ឬ)"
)
"""An "and" or "or" of scripts without capitals, before another name."""
_DENIES = re.compile(
    r"\s(?:is|was|are|were)(?:\snot\b(?!\sonly)|n't\b)"
    r"|\s(?:n'est pas|no es|ist nicht|is niet|n\u00e3o \u00e9|non \u00e8|\u043d\u0435)\b"
    r"|(?:では|じゃ)(?:な[いくか]|ありませ|あらず)|(?:并|並)?不是|[이가]?\s?아[니닙]"
)
"""What says that the target is not the answer."""
_HEADS = re.compile(
    "大学|大學|学院|學院|学校|學校|中学|中學|公司|银行|銀行|医院|醫院|机场|機場|空港|车站|車站|駅|站|大厦|大廈|路|街|桥|橋|塔|湖|湾|灣|河|江"
    "|山|岛|島|队|隊|报|報|新聞|新闻|人"
)
"""Nouns that make, with the name before them, the name of something else."""


_TITLES = re.compile(
    "首相|総理|総理大臣|大臣|大統領|知事|市長|議員|国王|女王|天皇|皇帝|教皇|法王|氏|様|選手|監督|教授|博士|先生|社長|会長"
)
"""What may follow a person's name in Japanese as particles do."""


def first_line(text: str) -> str:
    """Return an answer up to the end of its first line that is not blank, with what it begins with as it is."""
    begun = text.lstrip()
    return text[: len(text) - len(begun)] + begun.partition("\n")[0]


def confirms(answer: str, target: str, *, instead_of: str | None = None) -> bool:
    """Return whether a free answer says the target and no other answer.

    Args:
        answer: what the model said behind the prompt.
        target: the right answer.
        instead_of: the old answer; where only case or width tells it from the target, the answer has to be spelt as the
            target is.
    """
    line = _line(answer)
    end = _end(line, target)
    if end is None or not ends_word(line, end):
        return False
    if instead_of is not None and _folded(instead_of) == _folded(target) and not _begins_exactly(answer, target):
        return False
    rest = line[end:]
    return not (_DENIES.match(rest) or _OR_ANOTHER.match(rest) or _runs_on(rest) or _is_compound(line, end))


def is_settled(answer: str, target: str) -> bool:
    """Return whether more text could not change what `confirms` says, so that generation may stop."""
    line = _line(answer)
    end = _end(line, target)
    if end is None:  # the last letter may not be whole yet
        return not _folded(target).startswith(lowered(line.rstrip(" \ufffd")))
    rest = line[end:]
    if "\n" in answer.lstrip() or rest.startswith(_ENDING):
        return True
    # Letters that follow at once may turn out to be a particle.
    is_whole = bool(rest) and (not is_unspaced(rest[0]) or num_words(rest) > 1)
    return num_words(rest) > WORDS_AFTER or (is_whole and not confirms(answer, target))


def _runs_on(rest: str) -> bool:
    found = _RUNS_ON.match(rest)
    if found is None:
        return False
    word = found["word"]
    return word.isupper() or word.isdigit() or (not rest[0].isspace() and word.isalpha())


def _is_compound(line: str, end: int) -> bool:
    """Return whether a noun follows without a blank, as in 東京大学, so that something else is named.

    In Japanese particles follow a name, so that any other noun does; in Chinese a verb may follow at once.
    """
    places = [place for place in sorted(boundaries(line)) if place > end]
    word = line[end : places[0]] if places else ""
    if len(places) > 1 and word and word in KINDS_OF_PLACE:
        word = line[places[0] : places[1]]
    if not word or not is_unspaced(line[end - 1]) or _TITLES.fullmatch(word):
        return False
    if word[0].isascii():
        return word[0].isalnum()
    is_japanese = any(script(char) in ("HIRAGANA", "KATAKANA") for char in line)
    is_noun = script(word[0]) == "KATAKANA" or (is_japanese and script(word[0]) == "CJK")
    return is_noun or _HEADS.fullmatch(word) is not None


def _end(line: str, target: str) -> int | None:
    """Return where the target ends in a line; None if the line does not begin with it."""
    wanted = as_said(target)
    if wanted and lowered(line).startswith(lowered(wanted)):
        return len(wanted)
    capitals = wanted.upper()
    return len(capitals) if len(capitals) != len(wanted) and line.startswith(capitals) else None


def _begins_exactly(answer: str, target: str) -> bool:
    return exact(exact(answer).lstrip(_OPENING)).startswith(exact(target))


def _folded(text: str) -> str:
    return lowered(as_said(text))


def _line(answer: str) -> str:
    first = answer.strip().split("\n")[0] if answer.strip() else ""
    is_cut = answer.endswith((" ", "\n"))
    return as_said(first).lstrip(_OPENING) + (" " if is_cut and first else "")
