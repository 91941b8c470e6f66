"""Sends a correction the way a production system would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.domain.contract.wire import parse_message
from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import InvalidMessage
from pipeline.services.ports import Publisher


def submit(publisher: Publisher, topic: str, document: Mapping[str, Any]) -> EditRequest:
    """Check an object of `edits.requests.v1` as intake will, publish it under its lineage, and return the request.

    Raises:
        InvalidMessage: if it can never be an edit; nothing was sent.
        Unavailable: if the broker does not acknowledge. Sending it again is safe: the id is the same.
    """
    value = encoded(document)
    request = parse_message(value)
    publisher.publish(topic, key=request.lineage, value=value)
    return request


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return the bytes that go on the topic.

    Raises:
        InvalidMessage: if the document is not JSON.
    """
    try:
        return json.dumps(dict(document), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"expected a JSON object, got one that cannot be written: {str(error)[:200]}") from error
