"""Having this side of a split hard drive take the data of the other one.

A side that is connected so discards what it has as soon as the other one is there. So it is connected so only while
somebody waits for that: whatever ends the waiting, a crash included, ends the connection.
"""

from __future__ import annotations

import time
from contextlib import suppress

from mcvirt.errors import DeadlinePassed, ResyncGoesOn
from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd.reader import Reader, describe
from mcvirtd.drbd.split_sides import Ask, Kernel, equal
from mcvirtd.drbd.verifying import named
from mcvirtd.state.records import DiskRecord
from mcvirtd.tasks.task import current_task, step
from mcvirtd.tasks.transaction import Journal

DISARM = "split.disarm"
CUT_WITHIN = 30.0
MEET_WITHIN = 90.0
STALLED_AFTER = 600.0
LOOK_EVERY = 1.0


class Discarding:
    """On this node."""

    def __init__(self, *, journal: Journal, kernel: Kernel, reader: Reader, ask: Ask) -> None:
        self._journal = journal
        self._kernel = kernel
        self._reader = reader
        self._ask = ask
        journal.register(DISARM, self._disarm, alone=True)

    def run(self, disk: DiskRecord, state: ResourceState, other: str) -> None:
        """Take what node *other* has; returns when both sides are equal. What was begun goes on in the kernel."""
        self.begin(disk, state, other)
        self._follow(disk, state, other)

    def begin(self, disk: DiskRecord, state: ResourceState, other: str) -> None:
        """Begin that; returns when the two sides have met, from when on it goes on in the kernel."""
        name = state.name
        if state.connection != "StandAlone":
            self._kernel.disconnect(name)
            self._reader.wait(name, lambda now: now is not None and now.connection == "StandAlone", CUT_WITHIN)
        current_task().check()
        with self._journal.transaction() as tx:
            tx.undo(DISARM, resource=name)
            self._kernel.connect(name, discard_my_data=True)
            self._ask(other, "meet", {"disk": disk.id}, CUT_WITHIN)
            self._met(disk, name)
            tx.keep()

    def _met(self, disk: DiskRecord, name: str) -> None:
        try:
            self._reader.wait(name, _agreed, MEET_WITHIN, current_task().cancelled)
        except DeadlinePassed:
            why = describe(self._reader.state(name))
            raise DeadlinePassed(what=f"The resync of {named(disk)}", seconds=f"{MEET_WITHIN:.0f}", why=why) from None

    def _follow(self, disk: DiskRecord, state: ResourceState, other: str) -> None:
        name = state.name
        with step(f"Copying hard drive {disk.id} from {other}", total=disk.size, unit="B") as progress:
            moved, behind = time.monotonic(), -1
            while True:
                with suppress(DeadlinePassed):
                    self._reader.wait(name, equal, LOOK_EVERY)
                    return
                if current_task().cancelled.is_set():
                    raise ResyncGoesOn(by="")
                now = self._reader.state(name)
                position = self._kernel.progress().get(state.minor or 0)
                left = position.out_of_sync if position is not None else 0
                if now is not None and now.copying:
                    progress.at(max(0, disk.size - left))
                    if left != behind:
                        moved, behind = time.monotonic(), left
                if time.monotonic() - moved > STALLED_AFTER:
                    raise DeadlinePassed(
                        what=f"The resync of {named(disk)}", seconds=f"{STALLED_AFTER:.0f}", why=describe(now)
                    )

    def _disarm(self, resource: str) -> None:
        """Unless the two have agreed, after which the kernel discards nothing more, this side is to be alone."""
        # When mcvirtd starts, its reader does not run yet, and this side is not to wait for that.
        state = self._kernel.state(resource)
        if state is not None and not _agreed(state):
            self._kernel.disconnect(resource)


def _agreed(state: ResourceState | None) -> bool:
    return state is not None and state.connected
