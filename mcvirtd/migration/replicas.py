"""Replicated hard drives of a machine that is to come to this node: its side of them is here already.

What is asked for comes from the other node, and is checked here: only the disks of a machine that is registered there
and expected here are ever touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcvirt.errors import Conflict
from mcvirt.types.drbd import ResourceState
from mcvirt.types.replica import LegCommand
from mcvirt.types.vm import StorageType
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.local_legs import Legs, States
from mcvirtd.drbd.rejoining import Rejoining
from mcvirtd.drbd.roles import READY_WITHIN, Roles
from mcvirtd.drbd.windows import Windows
from mcvirtd.state.records import DiskRecord


class ArrivingReplicas:
    """On this node. Records of disks of other storage types are passed over."""

    def __init__(self, *, legs: Legs, states: States, roles: Roles, windows: Windows, rejoining: Rejoining) -> None:
        self._legs = legs
        self._states = states
        self._roles = roles
        self._windows = windows
        self._rejoining = rejoining

    def problem(self, disk: DiskRecord) -> str:
        """Why the disk's machine can't come here with it, in a sentence; '' if it can."""
        return self._roles.not_ready(disk)

    def open(self, disks: Sequence[DiskRecord]) -> None:
        """Let both sides be Primary, for as long as `keep` is called."""
        for disk in _replicated(disks):
            if why := self._roles.not_ready(disk):
                raise Conflict(text=f"Hard drive {disk.id} can't be used here now: {why}")
        for disk in _replicated(disks):
            self._windows.open(resource_name(disk.id))

    def use(self, disks: Sequence[DiskRecord]) -> None:
        """Make this side Primary, while the other one is; `open` must have been called for both."""
        for disk in _replicated(disks):
            name = resource_name(disk.id)
            if not self._windows.is_open(name):
                raise Conflict(text=f"Both sides of hard drive {disk.id} may not be Primary now.")
            self._legs.command(disk.id, LegCommand.PRIMARY)
            self._states.wait(name, _is_primary, READY_WITHIN)

    def keep(self, disks: Sequence[DiskRecord]) -> None:
        """The windows are still needed; Conflict if one was closed."""
        for disk in _replicated(disks):
            self._windows.renew(resource_name(disk.id))

    def lapsed(self, disks: Sequence[DiskRecord]) -> bool:
        """Whether nobody calls `keep` any more, and a window is open all the same."""
        return any(self._windows.lapsed(resource_name(disk.id)) for disk in _replicated(disks))

    def settle_in(self, disks: Sequence[DiskRecord]) -> None:
        """The machine is here now, and its disks are this node's to write to alone."""
        for disk in _replicated(disks):
            self._windows.close(resource_name(disk.id))

    def give_up(self, disks: Sequence[DiskRecord]) -> None:
        """The machine does not come, and no guest has its disks here."""
        for disk in _replicated(disks):
            self._roles.demote(disk)
            self._windows.close(resource_name(disk.id))

    def rejoin(self, disk: DiskRecord) -> None:
        """Join the other side again, if this one is alone and has nothing that the other has not."""
        self._rejoining.give_way(disk)


def _replicated(disks: Sequence[DiskRecord]) -> Sequence[DiskRecord]:
    return [disk for disk in disks if disk.storage_type is StorageType.DRBD]


def _is_primary(state: ResourceState | None) -> bool:
    return state is not None and state.role == "Primary"
