"""What is wrong with a document, in sentences that a producer can act on: what was expected, and what was got."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from pipeline.domain.formats.json_lines import kind_of

MOST_REASONS = 3
_NAMES_OF_OPTIONS = {"target": "target_new", **dict.fromkeys(("neighbour", "neighbours", "neighbors"), "locality")}
"""Field -> name in the contract, where the command's option has another one that is no misspelling."""
_BEGINNINGS = ("Value error, ", "Input should be ", "String should have ", "List should have ")
"""How pydantic begins what we begin with *expected*, or what says so already."""


def reasons_of(error: ValidationError, fields: Collection[str] = ()) -> str:
    """Return the first things that are wrong with an object, each with its field, and how many more there are.

    Args:
        error: what the model says.
        fields: names that an object may have; of an unknown one, that which was probably meant is told.
    """
    parts = []
    for detail in error.errors(include_url=False)[:MOST_REASONS]:
        where = ".".join(str(step) for step in detail["loc"]) or "message"
        is_unknown = detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1
        parts.append(f"{where}: {_told(detail)}" + (_meant(where, fields) if is_unknown else ""))
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _told(detail: Mapping[str, Any]) -> str:
    if detail["type"] == "extra_forbidden":
        return "there is no such field"
    text = detail["msg"]
    for beginning in _BEGINNINGS:
        text = text.removeprefix(beginning)
    if not text.startswith("expected") and text != detail["msg"]:
        text = f"expected {text}"
    return f"{text}, got {kind_of(detail['input'])}" if detail["type"].endswith("_type") else text


def _meant(name: str, fields: Collection[str]) -> str:
    known = [_NAMES_OF_OPTIONS[name]] if name in _NAMES_OF_OPTIONS else get_close_matches(name[:40], fields, n=1)
    return "".join(f" (did you mean {one}?)" for one in known if one in fields)
