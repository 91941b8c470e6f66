"""JSON as Corrigenda reads it: the one reader of messages, and of files of edits, of probes and of questions.

A field that stands twice in an object is refused: of two answers to "which target?" nobody knows which is meant. So is
what neither PostgreSQL's text nor canonical JSON can hold. Lines end with a line feed, with or without a carriage
return before it, and the last one may lack its end; nothing else ends a line, for JSON may hold U+2028, U+2029 and
U+0085 as they are.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.domain.errors import InvalidInput, InvalidMessage

BYTE_ORDER_MARK = "\ufeff"
LARGEST_INTEGER = 2**53
_UNSTORABLE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
"""How what cannot be stored is escaped; unescaped, it is refused as no UTF-8 or as a control character."""
_LONG_NUMBER = re.compile("[0-9]{16}")
"""What every integer that is too large has; others are left to the reader in C."""


def json_value(text: str, *, most_fields: int | None = None) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the JSON.
        most_fields: most fields that an object may have, wherever it stands; any number if None.

    Raises:
        InvalidMessage: if it is JSON that is refused for what it holds.
        InvalidInput: if it is no JSON.
    """
    if text.startswith(BYTE_ORDER_MARK):
        raise InvalidInput("expected JSON that begins at its first character, got a byte order mark before it")
    try:
        value = json.loads(
            text,
            object_pairs_hook=partial(_object, most=most_fields),
            parse_constant=_refuse_constant,
            parse_int=_integer if _LONG_NUMBER.search(text) else None,
        )
        if _UNSTORABLE.search(text):
            _refuse_unstorable(value)
    except RecursionError as error:
        raise InvalidInput("expected JSON, got lists or objects that are nested too deeply") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, character {error.colno}" if "\n" in text else f"character {error.colno}"
        what = error.msg.removesuffix(" at")
        raise InvalidInput(f"expected JSON, got text that does not parse: {what} at {place}") from error
    except ValueError as error:
        raise InvalidInput(f"expected JSON, got text that does not parse: {str(error)[:200]}") from error
    return value


def json_lines(
    content: bytes, file: object, *, on_refused: Callable[[int, str], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file, one a line, each with the number of its line; blank lines are skipped.

    Args:
        content: the file's bytes.
        file: its name, for complaints.
        on_refused: is told the line and the reason of what is no JSON object, or no UTF-8, or refused for what it
            holds; the first such line ends the reading where nobody is told.

    Raises:
        InvalidInput: naming the first line that is refused, where nobody is told.
    """
    for number, raw in enumerate(content.split(b"\n"), start=1):
        where = f"line {number} of {file}"
        try:
            line = _text(raw, where)
            if not line.strip():
                continue
            value = json_object(located(line, where), where)
        except InvalidInput as error:
            if on_refused is None:
                raise
            on_refused(number, str(error).removesuffix(f" ({where})").replace(f" in {where},", ","))
            continue
        yield number, value


def text_lines(content: bytes, file: object) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file without their ends and without byte order marks, each with its number.

    Raises:
        InvalidInput: naming the first line that is not UTF-8.
    """
    for number, line in enumerate(content.split(b"\n"), start=1):
        yield number, _text(line, f"line {number} of {file}")


def _text(line: bytes, where: str) -> str:
    try:
        # Files that were put together may have a mark at the head of any line.
        return line.decode("utf-8").removeprefix(BYTE_ORDER_MARK).removesuffix("\r")
    except UnicodeDecodeError as error:
        got = f"other bytes from byte {error.start + 1} on"
        raise InvalidInput(f"expected text in UTF-8, got {got} ({where})") from error


def located(text: str, where: str) -> Any:
    """Return the value of a JSON text that stands somewhere.

    Raises:
        InvalidInput, InvalidMessage: as `json_value`, with where it stands.
    """
    try:
        return json_value(text)
    except InvalidInput as error:
        raise type(error)(f"{error} ({where})") from error


def json_object(value: Any, where: str) -> dict[str, Any]:
    """Return a JSON value that has to be an object.

    Raises:
        InvalidInput: if it is none.
    """
    if not isinstance(value, dict):
        raise InvalidInput(f"expected a JSON object in {where}, got {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """Return what a value of JSON is, in JSON's words and not in Python's."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case _:
            return type(value).__name__


def _object(pairs: list[tuple[str, Any]], *, most: int | None) -> dict[str, Any]:
    if most is not None and len(pairs) > most:
        raise InvalidMessage(f"expected objects of at most {most} fields, got one of {len(pairs)}")
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InvalidMessage(f"expected each field of an object once, got the duplicate field {twice!r:.120}")
    return made


def _integer(digits: str) -> int:
    number = int(digits)
    if abs(number) > LARGEST_INTEGER:
        raise InvalidMessage("expected integers within 2^53, got a larger one")
    return number


def _refuse_constant(name: str) -> object:
    raise InvalidMessage(f"expected JSON numbers, got {name}")


def _refuse_unstorable(value: object) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise InvalidMessage("expected text without NUL, got a string that holds one")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise InvalidMessage("expected Unicode text, got a lone surrogate")
    elif isinstance(value, dict):
        for name, item in value.items():
            _refuse_unstorable(name)
            _refuse_unstorable(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)
