"""Carrying bytes between a TLS connection to another node and a socket on this one, in both directions.

One thread does both: OpenSSL's connections must not be read and written by two at the same time. Neither side is read
faster than the other takes it. When one side ends, what it said before still reaches the other, and then all ends.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable

Heard = Callable[[memoryview], None]

_ROOM = 256 * 1024
_LAST_WORDS_WITHIN = 10.0
_SILENCE_WITHIN = 10
_WOULD_BLOCK = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


class _Way:
    """What has come in from *source* and has not gone out to *target* yet; *heard* is called with each piece of it."""

    def __init__(self, source: socket.socket, target: socket.socket, heard: Heard | None = None) -> None:
        self.source = source
        self.target = target
        self.heard = heard
        self.carried = 0
        self.ended = False  # *source* has no more
        self._buffer = memoryview(bytearray(_ROOM))
        self._begin = 0
        self._end = 0

    @property
    def holds(self) -> bool:
        return self._begin < self._end

    def fill(self) -> None:
        """Read until there is no room, or nothing more to read now."""
        if self.holds or self.ended:
            return
        self._begin = self._end = 0
        with contextlib.suppress(*_WOULD_BLOCK):
            # TLS gives one record at a time, and has more of them inside that no poll would tell of.
            while self._end < _ROOM:
                got = self.source.recv_into(self._buffer[self._end :])
                if not got:
                    self.ended = True
                    return
                if self.heard is not None:
                    self.heard(self._buffer[self._end : self._end + got])
                self._end += got

    def empty(self) -> None:
        """Write what is there, as far as it is taken now."""
        with contextlib.suppress(*_WOULD_BLOCK):
            while self.holds:
                sent = self.target.send(self._buffer[self._begin : self._end])
                self._begin += sent
                self.carried += sent


def carry(tls: ssl.SSLSocket, plain: socket.socket, heard: Heard | None = None) -> bool:
    """Carry until one side ends; True if that was *plain*. Raises OSError when one of them breaks.

    The sockets stay open. `end` from another thread ends it. *heard* is called with all that is read from *plain*,
    before any of it is sent on.
    """
    tls.setblocking(False)
    plain.setblocking(False)
    out, back = _Way(plain, tls, heard), _Way(tls, plain)
    while True:
        before = out.carried + back.carried
        for way in (out, back):
            way.fill()
            way.empty()
            if way.ended and not way.holds:
                if way is out:
                    _take_leave(tls)
                return way is out
        if out.carried + back.carried == before:
            _wait(out, back)


def _wait(*ways: _Way) -> None:
    wanted: dict[socket.socket, int] = {}
    for way in ways:
        if way.holds:
            wanted[way.target] = wanted.get(way.target, 0) | select.POLLOUT
        else:
            wanted[way.source] = wanted.get(way.source, 0) | select.POLLIN
    poll = select.poll()
    for sock, events in wanted.items():
        poll.register(sock, events)
    poll.poll()


def _take_leave(tls: ssl.SSLSocket) -> None:
    """End the connection so that the other node has read all before it hears of the end."""
    with contextlib.suppress(OSError, ValueError):
        tls.unwrap()
    with contextlib.suppress(OSError):
        # SSLSocket's own shutdown() and recv() would go on without TLS, or not at all.
        socket.socket.shutdown(tls, socket.SHUT_WR)
        tls.settimeout(_LAST_WORDS_WITHIN)
        while socket.socket.recv(tls, _ROOM):
            pass


def notice_silence(sock: socket.socket) -> None:
    """Have the kernel break the connection when the other machine does not answer for some seconds."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _SILENCE_WITHIN // 2),
        (socket.TCP_KEEPINTVL, 1),
        (socket.TCP_KEEPCNT, _SILENCE_WITHIN // 2),
        (socket.TCP_USER_TIMEOUT, _SILENCE_WITHIN * 1000),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def end(sock: socket.socket) -> None:
    """Let the thread that carries for *sock* find the end of it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
