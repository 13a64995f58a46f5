"""Devices that guests let go of, or refuse to: what is heard of them, and who waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mcvirt.errors import DeadlinePassed, LibvirtFailed


class DeviceNews:
    """Notes that something happened to the devices of a domain. A note says where to look, not what is there."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._notes: dict[str, int] = {}
        self._refusals: dict[str, int] = {}

    def note(self, uuid: str, *, refused: bool = False) -> None:
        """A device of *uuid* went, all went with their domain, or (*refused*) the guest keeps one."""
        with self._changed:
            self._notes[uuid] = self._notes.get(uuid, 0) + 1
            if refused:
                self._refusals[uuid] = self._refusals.get(uuid, 0) + 1
            self._changed.notify_all()

    def forget(self, uuid: str) -> None:
        """The domain is gone for good."""
        with self._changed:
            self._refusals.pop(uuid, None)
            self._notes.pop(uuid, None)
            self._changed.notify_all()

    def heard(self, uuid: str) -> tuple[int, int]:
        """How many notes there were so far, and how many of them were refusals."""
        with self._changed:
            return self._notes.get(uuid, 0), self._refusals.get(uuid, 0)

    def wait_until_gone(
        self, uuid: str, what: str, is_there: Callable[[], bool], since: tuple[int, int], within: float
    ) -> None:
        """Return when *is_there* says no, asked again at each note.

        Raises LibvirtFailed if the guest refused after *since* was heard, DeadlinePassed after *within* seconds.
        """
        deadline = time.monotonic() + within
        while True:
            heard = self.heard(uuid)
            if not is_there():
                return
            if heard[1] > since[1]:
                raise LibvirtFailed(action=f"detach {what}", reason="the guest refuses to let it go.")
            with self._changed:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait_for(
                    lambda heard=heard: self._notes.get(uuid, 0) != heard[0],  # type: ignore[misc]
                    remaining,
                ):
                    raise DeadlinePassed(
                        what=f"Detaching {what}",
                        seconds=within,
                        why="the guest has not let it go yet. It may still do so, or stop the virtual machine.",
                    )
