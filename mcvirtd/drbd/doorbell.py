"""The socket at which the handler program says that there is an event, and asks about the other side."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from mcvirt.errors import BadArgument, McvirtError
from mcvirtd.drbd.config import checked_name
from mcvirtd.drbd.spool import HandlerEvent

log = logging.getLogger(__name__)
_SAY_WITHIN = 2.0
_LONGEST = 4096
_AT_ONCE = 64
_decode = msgspec.json.Decoder(HandlerEvent).decode

Answer = Callable[[HandlerEvent], int]


class Doorbell:
    """Only root can ring. *answer* gives the number that the handler program is told, in a thread of its own."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._listener: socket.socket | None = None
        self._room = threading.BoundedSemaphore(_AT_ONCE)

    def start(self) -> None:
        """Begin to listen, instead of a daemon that was here before."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(before)
        listener.listen(_AT_ONCE)
        self._listener = listener
        threading.Thread(target=self._listen, args=(listener,), name="doorbell", daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _listen(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            self._room.acquire()
            threading.Thread(target=self._serve, args=(line,), name="doorbell", daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        try:
            with line:
                line.settimeout(_SAY_WITHIN)
                event = self._hear(line)
                if event is not None:
                    line.sendall(f"{self._answer(event)}\n".encode())
        except (OSError, McvirtError) as error:
            log.warning("a handler of DRBD got no answer: %s", error)
        except Exception:
            log.exception("a handler of DRBD got no answer")
        finally:
            self._room.release()

    @staticmethod
    def _hear(line: socket.socket) -> HandlerEvent | None:
        said = b""
        while not said.endswith(b"\n"):
            piece = line.recv(_LONGEST)
            if not piece or len(said) > _LONGEST:
                return None
            said += piece
        try:
            event = _decode(said)
            checked_name(event.resource)
        except (msgspec.DecodeError, BadArgument) as error:
            log.warning("what rang at DRBD's doorbell is no event: %s", error)
            return None
        return event
