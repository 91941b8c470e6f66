"""Numbers with their nouns."""

from __future__ import annotations

from datetime import timedelta

_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 edit`, `2 edits`, `1,200 edits`.

    Args:
        number: how many.
        noun: for one.
        plural: for any other number; the noun with an s if empty.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def spoken(span: timedelta) -> str:
    """Return how long something is, to its two largest units: `1 day`, `90 days 1 hour`, `2 minutes`."""
    left, parts = max(round(span.total_seconds()), 0), list[str]()
    for noun, seconds in _UNITS:
        number, left = divmod(left, seconds)
        parts += [counted(number, noun)] if number else []
    return " ".join(parts[:2]) or "0 seconds"
