"""Serial consoles that callers have open, and what guests have said on theirs."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mcvirt.errors import BadArgument, NotFound
from mcvirt.types.vm import ConsoleChunk
from mcvirtd.hypervisor.console import Console

IDLE = 60.0
LONGEST_WAIT = 30.0
MOST_OPEN = 64
MOST_LOG = 1024 * 1024
MOST_TYPED = 64 * 1024


class _Open(msgspec.Struct):
    vm: str
    user: str
    console: Console
    used: float


class Consoles:
    """At most MOST_OPEN; one that nobody reads for a minute is closed when the next is opened, or by `close_idle`."""

    def __init__(self, open_console: Callable[[str], Console], clock: Callable[[], float] = time.monotonic) -> None:
        self._open_console = open_console
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}

    def open(self, vm: str, uuid: str, user: str) -> str:
        """Open the console of the domain *uuid*, and return its ID."""
        self.close_idle()
        with self._lock:
            if len(self._open) >= MOST_OPEN:
                raise BadArgument(what="console", why=f"{MOST_OPEN} consoles are open already. Close one first.")
        console = self._open_console(uuid)
        console_id = secrets.token_hex(8)
        with self._lock:
            self._open[console_id] = _Open(vm, user, console, self._clock())
        return console_id

    def _find(self, vm: str, console_id: str, user: str) -> Console:
        with self._lock:
            found = self._open.get(console_id)
            if found is None or found.vm != vm or found.user != user:
                raise NotFound(kind="open console", name=console_id[:40])
            found.used = self._clock()
            return found.console

    def read(self, vm: str, console_id: str, user: str, wait: float) -> ConsoleChunk:
        """What the guest has said since; an ended console is forgotten when that was told."""
        console = self._find(vm, console_id, user)
        data = console.read(max(0.0, min(wait, LONGEST_WAIT)))
        if not data and console.ended:
            self._forget(console_id)
            return ConsoleChunk(data=b"", open=False)
        return ConsoleChunk(data=data, open=True)

    def write(self, vm: str, console_id: str, user: str, data: bytes) -> None:
        """Type *data*."""
        if len(data) > MOST_TYPED:
            raise BadArgument(what="console", why=f"more than {MOST_TYPED} bytes can't be typed at once.")
        self._find(vm, console_id, user).write(data)

    def close(self, vm: str, console_id: str, user: str) -> None:
        """Close a console; NotFound if it is not the caller's."""
        self._find(vm, console_id, user)
        self._forget(console_id)

    def _forget(self, console_id: str) -> None:
        with self._lock:
            found = self._open.pop(console_id, None)
        if found is not None:
            found.console.close()

    def close_idle(self, *, every: bool = False) -> None:
        """Close those that were not used for a minute; *every* one at the end."""
        oldest = self._clock() - IDLE
        with self._lock:
            idle = [console_id for console_id, found in self._open.items() if every or found.used < oldest]
        for console_id in idle:
            self._forget(console_id)


def read_log(path: Path, tail: int) -> bytes:
    """The last *tail* bytes of a console's log; nothing if there is none yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max(0, min(tail, MOST_LOG))))
            return file.read(MOST_LOG)
    except FileNotFoundError:
        return b""
