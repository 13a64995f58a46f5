"""Windows: the time in which both sides of a hard drive may be Primary, while its guest goes from one to the other.

A window is a lease: it is renewed again and again by who needs it. When nobody does any more, a program of its own
(`mcvirtd.drbd.guard`) closes it, whatever has become of mcvirtd.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mcvirt.errors import CommandFailed, Conflict
from mcvirtd.drbd.config import checked_name
from mcvirtd.host.leases import Leases, start_apart

log = logging.getLogger(__name__)

LEASE = 8.0
"""Seconds that a window stays open without being renewed; closing it takes one or two more."""
RENEW_EVERY = 2.0
DIRECTORY = "windows"


class Verbs(Protocol):
    """What is asked of DRBD on this node."""

    def two_primaries(self, name: str, allow: bool) -> None: ...


class Windows:
    """Those of this node's resources. *watch* starts the guard; it returns when that looks at the directory."""

    def __init__(self, directory: Path, verbs: Verbs, watch: Callable[[Path], None] | None = None) -> None:
        self._leases = Leases(directory)
        self._verbs = verbs
        self._watch = watch if watch is not None else _start_guard

    def open(self, resource: str) -> None:
        """Let both sides be Primary, for LEASE seconds."""
        name = checked_name(resource)
        self._leases.prepare()
        with self._leases.held(name):  # a lease that ends meanwhile is not closed before the kernel has opened it
            with self._leases.alone():
                if not self._leases.looked_after():
                    self._watch(self._leases.directory)
                self._leases.take(name, LEASE)
            self._verbs.two_primaries(name, True)

    def renew(self, resource: str) -> None:
        """Keep the window open for another LEASE seconds; Conflict if it was closed."""
        name = checked_name(resource)
        with self._leases.held(name):
            if not self._leases.exists(name):
                raise Conflict(text=f"Both sides of {name} may not be Primary any more.")
            self._leases.take(name, LEASE)

    def close(self, resource: str) -> None:
        """One Primary at the most from now on; where both are still, as soon as one of them is not."""
        name = checked_name(resource)
        if not self._leases.exists(name):
            return
        with self._leases.held(name):
            try:
                self._verbs.two_primaries(name, False)
            except CommandFailed as error:
                log.warning("both sides of %s may be Primary for some seconds more: %s", name, error)
                self._leases.end(name)
            else:
                self._leases.drop(name)

    def lapsed(self, resource: str) -> bool:
        """Whether nobody has renewed it, and it could not be closed yet."""
        name = checked_name(resource)
        return self._leases.exists(name) and self._leases.left(name) <= 0

    def is_open(self, resource: str) -> bool:
        """Whether both sides may be Primary, because somebody needs that now."""
        return self._leases.left(checked_name(resource)) > 0


def _start_guard(directory: Path) -> None:
    argv = [sys.executable, "-I", "-m", "mcvirtd.drbd.guard", str(directory)]
    start_apart(f"mcvirt-drbd-guard-{secrets.token_hex(4)}", argv)
