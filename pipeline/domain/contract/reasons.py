"""What is wrong with a document, in sentences that its sender can act on: what was expected, and what was got.

    reasons_of(error)  # max_tokens: expected a whole number, got 'many'; n: expected at most 8, got 99

Pydantic's own messages name its types and rules. Readers of ours know JSON, and want to know what to write instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from pipeline.domain.formats.json_lines import kind_of

MOST_REASONS = 3
MAX_QUOTED = 40
"""Most characters of a value that is quoted."""
_NAMES_OF_OPTIONS = {"target": "target_new", **dict.fromkeys(("neighbour", "neighbours", "neighbors"), "locality")}
"""Field -> name in the contract, where the command's option has another one that is no misspelling."""
_TIME = "a time of RFC 3339 with an offset, such as 2026-06-01T12:00:00Z"
_EXPECTED: Mapping[str, str] = {
    "missing": "a value",
    "string_type": "a string",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "list_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "an object"),
    "none_required": "null, or no such field",
    **dict.fromkeys(("literal_error", "enum"), "{expected}"),
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "string_pattern_mismatch": "text that matches {pattern}",
    **dict.fromkeys(("uuid_type", "uuid_parsing"), "a UUID"),
    **dict.fromkeys(("time_delta_type", "time_delta_parsing"), "a number of seconds"),
    **dict.fromkeys(("datetime_type", "datetime_parsing", "datetime_from_date_parsing", "timezone_aware"), _TIME),
}
"""Pydantic's kind of error -> what was expected, with places for what pydantic tells beside it."""
_LENGTHS: Mapping[str, tuple[str, str]] = {
    "string_too_short": ("at least", "min_length"),
    "string_too_long": ("at most", "max_length"),
    "too_short": ("a list of at least", "min_length"),
    "too_long": ("a list of at most", "max_length"),
}


NO_SUCH_FIELD = "there is no such field"


def reasons_of(error: ValidationError, fields: Collection[str] = (), *, unknown: str = NO_SUCH_FIELD) -> str:
    """Return the first things that are wrong with an object, each with its field, and how many more there are.

    Args:
        error: what the model says.
        fields: names that an object may have; of an unknown one, that which was probably meant is told.
        unknown: what is said of a field that an object may not have.
    """
    return reasons_in(error.errors(include_url=False), fields, unknown=unknown)


def reasons_in(
    details: Sequence[Mapping[str, Any]], fields: Collection[str] = (), *, unknown: str = NO_SUCH_FIELD
) -> str:
    """Return what `reasons_of` does, of the details of an error, such as pydantic and FastAPI list them."""
    parts = []
    for detail in details[:MOST_REASONS]:
        where = place_of(detail)
        if detail["type"] == "extra_forbidden":
            said = unknown + (_meant(where, fields) if len(detail["loc"]) == 1 else "")
        else:
            said = reason_of(detail)
        parts.append(f"{where}: {said}" if where else said)
    more = len(details) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def place_of(detail: Mapping[str, Any]) -> str:
    """Return the field that a detail is about, such as `messages.0.role`; nothing if it is about the whole."""
    return ".".join(str(step) for step in detail["loc"])


def reason_of(detail: Mapping[str, Any]) -> str:
    """Return one thing that is wrong, without its field."""
    kind, given = detail["type"], detail["input"]
    said = expected_of(detail)
    if kind == "missing":
        return f"{said}, got none"
    if kind in _LENGTHS:
        return f"{said}, got {len(given)}" if isinstance(given, str | list) else said
    if kind.endswith("_type"):
        return f"{said}, got {kind_of(given)}"
    return f"{said}, got {_value(given)}" if kind in _EXPECTED else said


def expected_of(detail: Mapping[str, Any]) -> str:
    """Return what was expected of a value that is wrong, and nothing of the value, which may be a secret."""
    kind, bounds = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return NO_SUCH_FIELD
    if kind == "json_invalid":
        return f"expected JSON, got text that does not parse: {bounds['error']}"
    if kind in _LENGTHS:
        return f"expected {_length(kind, bounds)}"
    if kind in _EXPECTED:
        bounds = {name: _bound(bound) for name, bound in bounds.items()}
        return f"expected {_EXPECTED[kind].format_map(bounds)}"
    return str(detail["msg"]).removeprefix("Value error, ")


def _length(kind: str, bounds: Mapping[str, Any]) -> str:
    words, name = _LENGTHS[kind]
    bound: int = bounds[name]
    if kind == "too_long" and not bound:
        return "null or an empty list"
    unit = (" character" if bound == 1 else " characters") if kind.startswith("string") else ""
    return f"{words} {bound}{unit}"


def _bound(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _value(given: Any) -> str:
    if isinstance(given, str):
        return f"{given[:MAX_QUOTED]!r}" + ("…" if len(given) > MAX_QUOTED else "")
    return str(given)[:MAX_QUOTED] if isinstance(given, int | float) and not isinstance(given, bool) else kind_of(given)


def _meant(name: str, fields: Collection[str]) -> str:
    known = [_NAMES_OF_OPTIONS[name]] if name in _NAMES_OF_OPTIONS else get_close_matches(name[:40], fields, n=1)
    return "".join(f" (did you mean {one}?)" for one in known if one in fields)
