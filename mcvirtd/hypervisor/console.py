"""A guest's serial console: bytes that come when the guest has something to say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

BUFFER_LIMIT = 1024 * 1024


class Console:
    """An open console. Who opens one takes it from whoever had it; ``ended`` tells that it was lost or closed.

    At most *BUFFER_LIMIT* bytes that nobody has read are kept: the oldest go first, as on a screen.
    """

    def __init__(
        self,
        send: Callable[[bytes], int],
        hang_up: Callable[[], None],
        stop_listening: Callable[[], None] = lambda: None,
    ) -> None:
        self._send = send
        self._hang_up = hang_up
        self._stop_listening = stop_listening
        self._arrived = threading.Condition()
        self._buffer = bytearray()
        self._ended = False
        self._closed = False

    @property
    def ended(self) -> bool:
        """True when no more will come, and all that came has been read."""
        with self._arrived:
            return self._ended and not self._buffer

    def read(self, timeout: float) -> bytes:
        """What the guest said since the last time; waits up to *timeout* seconds for the first byte.

        Empty when it said nothing in that time, or when the console has ended.
        """
        deadline = time.monotonic() + timeout
        with self._arrived:
            while not self._buffer and not self._ended:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._arrived.wait(remaining)
            data = bytes(self._buffer)
            self._buffer.clear()
            return data

    def write(self, data: bytes) -> None:
        """Type *data* at the guest; nothing happens when the console has ended."""
        left = memoryview(data)
        while left and not self._ended:
            sent = self._send(bytes(left))
            if sent <= 0:
                return
            left = left[sent:]

    def close(self) -> None:
        """Give the console back; may be called twice."""
        with self._arrived:
            if self._closed:
                return
            self._closed = True
        try:
            self._hang_up()
        finally:
            self.end()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- for who receives from the guest --------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Note what the guest said."""
        with self._arrived:
            self._buffer += data
            del self._buffer[:-BUFFER_LIMIT]
            self._arrived.notify_all()

    def lose(self) -> None:
        """Listen no longer: nothing more can come."""
        self._stop_listening()
        self.end()

    def end(self) -> None:
        """Note that there is nobody at the other end any more."""
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()


class Stream(Protocol):
    """The hypervisor's end of a console. ``heard(over)`` is called whenever there is something to receive, and with
    True when nothing more will come; it goes on being called until ``deafen``, which must be called once only."""

    def listen(self, heard: Callable[[bool], None]) -> None: ...
    def deafen(self) -> None: ...
    def receive(self) -> bytes | None:
        """What there is; None when there is nothing now, no byte when there never will be."""

    def send(self, data: bytes) -> int: ...
    def end(self) -> None: ...


def console_on(stream: Stream) -> Console:
    """The console at whose other end *stream* is."""
    calling = threading.Lock()
    deafened = threading.Lock()  # taken by whoever calls deafen, and never given back

    def deafen() -> None:
        if deafened.acquire(blocking=False):
            stream.deafen()

    def send(data: bytes) -> int:
        with calling:
            return stream.send(data)

    def hang_up() -> None:
        deafen()
        with calling:
            stream.end()

    console = Console(send, hang_up, deafen)

    def heard(over: bool) -> None:
        while data := stream.receive():
            console.feed(data)
        if over or data is not None:
            console.lose()  # an ended stream has something to receive for ever: listening to it would never rest

    stream.listen(heard)
    return console
