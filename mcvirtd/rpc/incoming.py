"""One message of a client: read within its limits, or refused.

Pyro4's own reader and dispatcher take what nobody needs and strangers can use: marshalled annotations, batches, calls
without an answer, attribute access, compressed data, and a message that never ends. Here a message is a header of
Pyro4's and plain JSON, all of which must be there in time; annotations are read and thrown away.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import msgspec
from Pyro4 import constants, message, util

_HEADER = struct.Struct(message.Message.header_format)
_SERIALIZER = util.JsonSerializer.serializer_id
_PIECE = 65536


class HungUp(Exception):
    """The client has closed the connection, or sent nothing, or not everything, in time."""


class Unacceptable(Exception):
    """What arrived is no message that is taken here; nothing after it can be made sense of."""


class Incoming(msgspec.Struct, frozen=True):
    """A message."""

    kind: int
    sequence: int
    data: bytes


class Call(msgspec.Struct, frozen=True):
    """What a message of kind MSG_INVOKE has in it."""

    object: str
    method: str
    params: list[Any] = []
    kwargs: dict[str, Any] = {}


def receive(sock: socket.socket, *, most: int, patience: float, within: float) -> Incoming:
    """The next message on *sock*, of at most *most* bytes.

    Waits *patience* seconds for its beginning, and *within* seconds from then on for the rest, however it trickles in.
    """
    clock = time.monotonic
    head = _some(sock, _HEADER.size, patience)
    deadline = clock() + within
    if len(head) < _HEADER.size:
        head += _exactly(sock, _HEADER.size - len(head), deadline, clock)
    tag, version, kind, flags, sequence, size, serializer, annotations, _, checksum = _HEADER.unpack(head)
    if tag != b"PYRO" or version != constants.PROTOCOL_VERSION:
        raise Unacceptable("this is not Pyro's protocol")
    total = kind + version + size + annotations + flags + serializer + sequence + message.Message.checksum_magic
    if checksum != total & 0xFFFF or size < 0:
        raise Unacceptable("the header is damaged")
    if size + annotations > most:
        raise Unacceptable(f"the message is larger than the {most} bytes that are taken")
    if flags or (serializer != _SERIALIZER and kind != message.MSG_PING):
        raise Unacceptable(f"only plain JSON is taken, not flags {flags:#x} or serializer {serializer}")
    body = _exactly(sock, annotations + size, deadline, clock)
    return Incoming(kind, sequence, body[annotations:] if annotations else body)


def send(sock: socket.socket, kind: int, sequence: int, data: bytes, *, within: float) -> None:
    """Send a message with *data*, which is JSON; HungUp if the client does not take it within that many seconds."""
    header = (kind, constants.PROTOCOL_VERSION, len(data), _SERIALIZER, sequence, message.Message.checksum_magic)
    head = _HEADER.pack(
        b"PYRO", constants.PROTOCOL_VERSION, kind, 0, sequence, len(data), _SERIALIZER, 0, 0, sum(header) & 0xFFFF
    )
    deadline = time.monotonic() + within
    left = memoryview(head + data)
    sock.settimeout(within)
    try:
        while True:
            left = left[sock.send(left) :]
            if not left:
                return
            if (remaining := deadline - time.monotonic()) <= 0:
                raise TimeoutError("too slow")
            sock.settimeout(remaining)
    except OSError as error:
        raise HungUp(f"sending: {error}") from None


def _some(sock: socket.socket, size: int, within: float) -> bytes:
    if within <= 0:
        raise HungUp("too late")
    sock.settimeout(within)
    try:
        data = sock.recv(size)
    except OSError as error:
        raise HungUp(f"receiving: {error}") from None
    if not data:
        raise HungUp("closed by the client")
    return data


def _exactly(sock: socket.socket, size: int, deadline: float, clock: Callable[[], float]) -> bytes:
    if not size:
        return b""
    piece = _some(sock, min(size, _PIECE), deadline - clock())
    if len(piece) == size:
        return piece
    # Grows with what has arrived: the header's word is not enough to take up memory.
    data = bytearray(piece)
    while len(data) < size:
        data += _some(sock, min(size - len(data), _PIECE), deadline - clock())
    return bytes(data)
