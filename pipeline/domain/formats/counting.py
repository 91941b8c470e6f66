"""Numbers with their nouns."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 edit`, `2 edits`, `1,200 edits`.

    Args:
        number: how many.
        noun: for one.
        plural: for any other number; the noun with an s if empty.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
