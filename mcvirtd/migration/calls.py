"""How often a client of libvirt has called the libvirt on the other node, told from the bytes that go there.

libvirt's protocol (`virnetprotocol.x`): each message begins with its length, these four bytes included, and with the
number of the program that it is for; both have four bytes, the highest first. The program that only keeps a connection
alive has a number of its own, and all else are calls.
"""

from __future__ import annotations

import struct

_KEEPALIVE = 0x6B656570
_BEGINNING = struct.Struct(">II")


class Calls:
    """*count* is how many have begun to be sent."""

    def __init__(self) -> None:
        self.count = 0
        self._beginning = b""
        self._left = 0  # of the message whose beginning has passed

    def hear(self, data: memoryview) -> None:
        """What is sent next, in pieces of any length."""
        while data:
            if self._left:
                passed = min(self._left, len(data))
                self._left -= passed
            else:
                passed = min(_BEGINNING.size - len(self._beginning), len(data))
                self._beginning += bytes(data[:passed])
                if len(self._beginning) == _BEGINNING.size:
                    length, program = _BEGINNING.unpack(self._beginning)
                    self._beginning, self._left = b"", max(0, length - _BEGINNING.size)
                    self.count += program != _KEEPALIVE
            data = data[passed:]
