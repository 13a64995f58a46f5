"""What DRBD's handlers have said, kept until it was dealt with, and the splits that nobody has resolved yet.

The handler program writes the events; it works while mcvirtd is away. An event goes when everyone who is to hear it
has: what fails, and what a crash interrupts, is said again.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from mcvirt.errors import BadArgument
from mcvirtd.drbd.config import checked_name
from mcvirtd.host import files

log = logging.getLogger(__name__)
_SPLIT = "split"
_MOST = 64 * 1024


class HandlerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """*event* is the handler's name, such as out-of-sync; *at* the time in seconds since 1970; *peer* a host's name.

    *kept* is false where the handler program could not write it down.
    """

    event: str
    resource: str
    at: float = 0.0
    minor: str = ""
    peer: str = ""
    kept: bool = True


Hearer = Callable[[HandlerEvent], None]


class Spool:
    """The directory of the events. Every hearer is called with every event, once or more."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._hearers: list[Hearer] = []
        self._reading = threading.Lock()
        self._unwritten: list[HandlerEvent] = []

    def prepare(self) -> None:
        """Make the directories."""
        for path in (self.directory, self.directory / _SPLIT):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)

    def hear(self, hearer: Hearer) -> None:
        """Have *hearer* called with every event from now on, those that wait included, by `read`."""
        self._hearers.append(hearer)

    def take(self, event: HandlerEvent) -> None:
        """Have an event that could not be written down handed out by `read`, like the others, while this process lives.

        If it was written after all, and only that was not sure, it is handed out twice.
        """
        self._unwritten.append(event)

    def read(self) -> None:
        """Hand out what has come; what a hearer fails at stays, and so does what is after it of the same resource."""
        with self._reading:
            failed: set[str] = set()
            for path in sorted(self.directory.glob("[0-9]*.json")):
                event = self._event(path)
                if event is None:
                    path.replace(path.with_name("bad-" + path.name))
                elif event.resource not in failed and not self._handed_out(event):
                    failed.add(event.resource)
                elif event.resource not in failed:
                    files.delete(path)
            for event in tuple(self._unwritten):
                if event.resource not in failed and self._handed_out(event):
                    self._unwritten.remove(event)
                else:
                    failed.add(event.resource)

    def _event(self, path: Path) -> HandlerEvent | None:
        try:
            event = msgspec.convert(json.loads(path.read_bytes()[:_MOST]), HandlerEvent)
            checked_name(event.resource)
        except (OSError, ValueError, msgspec.ValidationError, BadArgument) as error:
            log.error("what DRBD's handler wrote to %s can't be read and is put aside: %s", path, error)
            return None
        return event

    def _handed_out(self, event: HandlerEvent) -> bool:
        for hearer in self._hearers:
            try:
                hearer(event)
            except Exception:
                log.exception("DRBD's %s of %s could not be dealt with; it is tried again", event.event, event.resource)
                return False
        return True

    # --- splits -------------------------------------------------------------------------------------------------------

    def split(self, resource: str) -> None:
        """Remember that the two sides of the resource refuse each other's data."""
        files.write_atomically(self.directory / _SPLIT / checked_name(resource), b"")

    def joined(self, resource: str) -> None:
        """They have taken each other's data, or the resource is gone."""
        files.delete(self.directory / _SPLIT / checked_name(resource))

    def splits(self) -> Sequence[str]:
        """The resources that are split, as far as is known."""
        try:
            return [path.name for path in (self.directory / _SPLIT).iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return []
