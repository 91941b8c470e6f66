"""Objects in JSON, one a line: the one reader for files of edits, of probes and of questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.domain.errors import InvalidInput


def utf8_text(content: bytes, file: object) -> str:
    """Return a file's text without the byte order mark that some programs put first.

    Raises:
        InvalidInput: if the bytes are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"expected a UTF-8 file, got {file}: {error.reason} at byte {error.start}") from error


def json_lines(text: str, file: object) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a text, one a line, each with the number of its line; blank lines are skipped.

    Raises:
        InvalidInput: if a line holds no JSON object.
    """
    # Not splitlines(): JSON may hold U+2028, U+2029 and U+0085 as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"line {number} of {file}"
            yield number, json_object(parsed_json(line, where), where)


def parsed_json(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        InvalidInput: if it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"expected JSON in {where}, got: {error}") from error


def json_object(value: Any, where: str) -> dict[str, Any]:
    """Return a JSON value that has to be an object.

    Raises:
        InvalidInput: if it is none.
    """
    if not isinstance(value, dict):
        raise InvalidInput(f"expected a JSON object in {where}, got {type(value).__name__}")
    return value
