"""Messages between a controller and its ranks, as JSON over a `multiprocessing` connection.

Every message names the version of the protocol; what it says is in `commands`. Only bytes are sent and received, so
nothing is ever unpickled.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.domain.errors import EngineFailed
from workers.commands import PROTOCOL_VERSION, Hello, Reply, Request

MAX_MESSAGE_BYTES = 64 * 2**20
"""Most bytes of a message. No command or answer comes near; a longer one is not ours."""

Message = TypeVar("Message", Request, Reply, Hello)


class Codec(Generic[Message]):
    """JSON of one kind of message, written and read.

    Args:
        kind: the record.
    """

    def __init__(self, kind: type[Message]) -> None:
        self._name = kind.__name__
        self._adapter: TypeAdapter[Message] = TypeAdapter(kind)

    def encode(self, message: Message) -> bytes:
        """Return the JSON of a message."""
        return self._adapter.dump_json(message)

    def decode(self, body: bytes) -> Message:
        """Return the message that JSON stands for.

        Raises:
            EngineFailed: if it is of another version of the protocol, or no such message.
        """
        try:
            value: Any = json.loads(body)
        except ValueError as error:
            raise EngineFailed(f"expected a {self._name} as JSON, got {body[:80]!r}: {error}") from None
        version = value.get("version") if isinstance(value, dict) else None
        if version != PROTOCOL_VERSION:
            raise EngineFailed(f"expected version {PROTOCOL_VERSION} of the rank protocol, got {version!r}")
        try:
            return self._adapter.validate_json(body)
        except ValidationError as error:
            raise EngineFailed(f"expected a {self._name}, got one that is not: {error}") from None


REQUESTS = Codec(Request)
REPLIES = Codec(Reply)
HELLOS = Codec(Hello)


def send(connection: Connection, body: bytes) -> None:
    """Send one message.

    Raises:
        EngineFailed: if it is too long.
        OSError: if the other side is gone.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise EngineFailed(f"expected a message of at most {MAX_MESSAGE_BYTES} bytes, got {len(body)}")
    connection.send_bytes(body)


def receive(connection: Connection) -> bytes | None:
    """Wait for one message and return it; None if the other side is gone.

    Raises:
        EngineFailed: if the message is too long or cut off.
    """
    try:
        return connection.recv_bytes(MAX_MESSAGE_BYTES)
    except (EOFError, ConnectionError):  # a peer that was killed resets the connection
        return None
    except OSError as error:
        raise EngineFailed(f"expected a whole message of at most {MAX_MESSAGE_BYTES} bytes, got: {error}") from error
