"""How messages between a controller and its ranks cross a Unix socket. Knows no process and no model.

A frame is four bytes of length, big endian, and as many bytes of JSON. Every message names the version of the protocol;
what it says is in `commands`. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.domain.errors import EngineFailed
from workers.commands import PROTOCOL_VERSION, Hello, Reply, Request

MAX_FRAME_BYTES = 64 * 2**20
"""Nothing that is said comes near; whatever does is not ours."""

_LENGTH = struct.Struct(">I")

Message = TypeVar("Message", Request, Reply, Hello)


class Codec(Generic[Message]):
    """Turns one kind of message into bytes and back.

    Args:
        kind: the record.
    """

    def __init__(self, kind: type[Message]) -> None:
        self._name = kind.__name__
        self._adapter: TypeAdapter[Message] = TypeAdapter(kind)

    def encode(self, message: Message) -> bytes:
        """JSON of a message."""
        return self._adapter.dump_json(message)

    def decode(self, body: bytes) -> Message:
        """The message.

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


def send_frame(connection: socket.socket, body: bytes) -> None:
    """Write one frame.

    Raises:
        EngineFailed: if it is too long.
        OSError: if the other side is gone.
    """
    if len(body) > MAX_FRAME_BYTES:
        raise EngineFailed(f"expected a message of at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive_frame(connection: socket.socket) -> bytes | None:
    """Read one frame; None if the other side has closed between frames.

    Raises:
        EngineFailed: if it is too long or cut off.
        TimeoutError: if the socket has a timeout and nothing comes.
    """
    header = _receive(connection, _LENGTH.size)
    if not header:
        return None
    if len(header) == _LENGTH.size:
        (length,) = _LENGTH.unpack(header)
        if length > MAX_FRAME_BYTES:
            raise EngineFailed(f"expected a message of at most {MAX_FRAME_BYTES} bytes, got one of {length}")
        body = _receive(connection, length)
        if len(body) == length:
            return body
    raise EngineFailed("expected a whole message, got one that is cut off")


def _receive(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            break
        parts += part
    return bytes(parts)
