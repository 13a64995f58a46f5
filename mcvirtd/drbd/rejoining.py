"""Joining two sides again that lost each other while both were Primary, as a migration needs it for a moment.

The kernel takes that for a split brain, whatever was written since. But only the guest writes, and it was on one side:
where the kernel of the other one says that nothing was written there, nothing is lost if that side takes what the
first one has. Where something was, it stays a split brain, for somebody to resolve.
"""

from __future__ import annotations

import logging

from mcvirt.errors import McvirtError
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.discarding import Discarding
from mcvirtd.drbd.local_legs import States
from mcvirtd.drbd.reader import describe
from mcvirtd.drbd.split_sides import Kernel, written
from mcvirtd.state.records import DiskRecord

log = logging.getLogger(__name__)

MEETS_WITHIN = 3.0
"""How long two sides that can meet by themselves may take for it."""


class Rejoining:
    """On this node, which has no guest that uses the disk."""

    def __init__(self, *, node: str, kernel: Kernel, states: States, discarding: Discarding) -> None:
        self._node = node
        self._kernel = kernel
        self._states = states
        self._discarding = discarding

    def give_way(self, disk: DiskRecord) -> None:
        """Have this side join the other one, if it is alone, and nothing was written here that the other has not."""
        name, other = resource_name(disk.id), next((node for node in disk.nodes if node != self._node), "")
        state = self._states.state(name)
        if state is None or state.connected or not other:
            return
        try:
            state = self._states.wait(name, lambda now: now is None or now.connected or now.split_brain, MEETS_WITHIN)
        except McvirtError:
            state = self._states.state(name) or state
        if state.connected:
            return
        alone = written(self._kernel, disk)
        if state.role == "Primary" or alone != 0:
            log.error(
                "DRBD: the two sides of %s have lost each other in a migration, and this one may have %s bytes that "
                "the other has not: %s",
                *(name, "some" if alone is None else alone, describe(state)),
            )
            return
        try:
            self._discarding.begin(disk, state, other)
        except McvirtError as error:
            log.error("DRBD: the two sides of %s, lost in a migration, do not find each other again: %s", name, error)
        else:
            log.warning("DRBD: the two sides of %s, which had lost each other in a migration, are joined again", name)
