"""Bodies of requests: read by the strict reader of messages, so that HTTP and Kafka take the same JSON."""

from __future__ import annotations

import codecs
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request

from pipeline.domain.contract.wire import MAX_FIELDS
from pipeline.domain.errors import InvalidInput, InvalidMessage
from pipeline.domain.formats.json_lines import BYTE_ORDER_MARK, json_value, kind_of
from pipeline.entrypoints.web.problems import Problem

JSON = ("application/json",)
LINES = ("application/x-ndjson", "application/jsonl")
MAX_ITEMS = 1_000
"""Most corrections of one call."""


async def _read(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_read)]
"""The parameter of a route that reads its body as it is."""


def media_type(request: Request, allowed: tuple[str, ...]) -> str:
    """Return the content type of a request without its parameters.

    Raises:
        Problem: 415 if it is none of those that are allowed.
    """
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said not in allowed:
        detail = f"Content-Type: expected {' or '.join(allowed)}, got {said or 'none'!r:.80}"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept": ", ".join(allowed)})
    return said


def json_of(body: bytes) -> Any:
    """Return the value of a body.

    Raises:
        Problem: 400 if it is no JSON, 422 if it is JSON that is refused for what it holds.
    """
    try:
        return json_value(_text(body), most_fields=MAX_FIELDS)
    except InvalidMessage as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    except InvalidInput as error:
        raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from error


def object_of(body: bytes) -> dict[str, Any]:
    """Return the value of a body that has to be an object.

    Raises:
        Problem: as `json_of`, and 422 if it is no object.
    """
    value = json_of(body)
    if not isinstance(value, dict):
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"expected a JSON object, got {kind_of(value)}")
    return value


def items_of(body: bytes, kind: str) -> tuple[list[dict[str, Any] | InvalidInput], bool]:
    """Return the corrections of a body, or why one is none, and whether there is just one that is no list.

    Raises:
        Problem: if the body as a whole is wrong.
    """
    if kind in LINES:
        found, is_one = [_line(line) for line in body.split(b"\n") if line.strip()], False
    else:
        value = json_of(body)
        is_one = not isinstance(value, list)
        found = [value] if is_one else value
    if not 0 < len(found) <= MAX_ITEMS:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"expected 1 to {MAX_ITEMS} corrections in a call, got {len(found)}"
        )
    return [_checked(one) for one in found], is_one


def _line(line: bytes) -> Any:
    """Return the value of a line, or why it has none: the lines beside it are taken."""
    try:
        # As in files, where each may have a mark at its head.
        text = line.decode("utf-8").removeprefix(BYTE_ORDER_MARK).removesuffix("\r")
        return json_value(text, most_fields=MAX_FIELDS)
    except UnicodeDecodeError as error:
        return InvalidInput(f"expected a line in UTF-8, got other bytes from byte {error.start + 1} on")
    except InvalidInput as error:
        return error


def _checked(value: Any) -> dict[str, Any] | InvalidInput:
    if isinstance(value, dict | InvalidInput):
        return value
    return InvalidInput(f"expected a JSON object, got {kind_of(value)}")


def _text(body: bytes) -> str:
    """Return a body as text; some clients begin theirs with a byte order mark, which says nothing."""
    try:
        return body.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        is_utf_16 = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        got = "one in UTF-16" if is_utf_16 else f"other bytes from byte {error.start + 1} on"
        raise Problem(HTTPStatus.BAD_REQUEST, f"expected a body in UTF-8, got {got}") from error
