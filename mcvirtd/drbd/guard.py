"""The guard of windows: a program that closes those which nobody renews any more, also when mcvirtd is dead.

    python3 -I -m mcvirtd.drbd.guard DIRECTORY

It runs under systemd apart from mcvirtd, from the first window on until there has been none for some minutes. The
kernel refuses to close a window while both sides are Primary: then the side on which no program has the device open,
which is the one where no guest is, becomes Secondary first.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

from mcvirt.errors import BadArgument, McvirtError
from mcvirtd.drbd.config import checked_name
from mcvirtd.host import drbd, systemd
from mcvirtd.host.leases import Leases

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5
CLOSE_WITHIN = 2.0
"""How long the others are not looked at while some are being closed."""
STAYS = 600.0


class Verbs(Protocol):
    """What is asked of DRBD on this node."""

    def two_primaries(self, name: str, allow: bool) -> None: ...
    def secondary(self, name: str) -> None: ...
    def is_up(self, name: str) -> bool: ...


class Guard:
    """Closes windows of *leases* that have ended."""

    def __init__(self, leases: Leases, verbs: Verbs) -> None:
        self._leases = leases
        self._verbs = verbs
        self._closing: dict[str, threading.Thread] = {}

    def sweep(self) -> bool:
        """Close those that have ended, as far as the kernel lets us; returns whether any are left, open or not."""
        ended = [name for name in self._leases.names() if self._leases.left(name) <= 0]
        self._closing = {name: thread for name, thread in self._closing.items() if thread.is_alive()}
        deadline = time.monotonic() + CLOSE_WITHIN
        for thread in [self._begin(name) for name in ended]:
            thread.join(max(0.0, deadline - time.monotonic()))
        return bool(self._leases.names())

    def _begin(self, name: str) -> threading.Thread:
        """What closes the window: a command that hangs for one resource keeps no other window open."""
        thread = self._closing.get(name)
        if thread is None or not thread.is_alive():
            thread = self._closing[name] = threading.Thread(target=self._close_ended, args=(name,), daemon=True)
            thread.start()
        return thread

    def _close_ended(self, name: str) -> None:
        try:
            with self._leases.held(name):
                if self._leases.exists(name) and self._leases.left(name) <= 0:  # else it was renewed meanwhile
                    self._close(name)
        except Exception:
            log.exception("the window of %s could not be closed; that is tried again", name)

    def _close(self, name: str) -> None:
        try:
            checked_name(name)
        except BadArgument:
            log.error("there is a file %r among the windows, which is none", name)
            self._leases.drop(name)
            return
        try:
            self._verbs.two_primaries(name, False)
        except McvirtError as error:
            if self._verbs.is_up(name):
                log.info("both sides of %s may still be Primary: %s", name, error)
                self._step_back(name)
                return
        self._leases.drop(name)
        log.warning("nobody has renewed it: both sides of %s may not be Primary any more", name)

    def _step_back(self, name: str) -> None:
        try:
            self._verbs.secondary(name)
        except McvirtError as error:
            log.info("%s stays Primary here: %s", name, error)


def main(argv: list[str] | None = None) -> int:
    """Look after the windows in a directory."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())  # noqa: ARG005
    leases = Leases(Path(words[0]))
    guard = Guard(leases, drbd)
    with contextlib.ExitStack() as duty:
        only = duty.enter_context(leases.looking_after())
        systemd.ready()
        needed = time.monotonic()
        while only and not stop.wait(LOOK_EVERY):
            if _swept(guard):
                needed = time.monotonic()
            elif time.monotonic() - needed > STAYS:
                with leases.alone():  # who opens one after this starts another guard
                    if not leases.names():
                        duty.close()
                        return 0
    return 0


def _swept(guard: Guard) -> bool:
    try:
        return guard.sweep()
    except Exception:
        log.exception("the windows could not be looked at; that is done again")
        return True


if __name__ == "__main__":
    sys.exit(main())
