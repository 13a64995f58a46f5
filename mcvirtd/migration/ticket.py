"""What is journalled of a migration: enough to find out, after any death, how it ended."""

from __future__ import annotations

from typing import Any

import msgspec

from mcvirt.types.arrival import Traveller
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.vm.design import Machine


class Ticket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The migration of machine *name* from *source* to *target*; the data of the disks in *copied* goes with it.

    *by* is who asked for it, *begun* when (seconds since the epoch). With *start_after* it is to be started there.
    """

    name: str
    uuid: str
    source: str
    target: str
    online: bool
    copied: tuple[str, ...]
    by: str
    begun: float
    start_after: bool = False  # not in the journals of earlier versions

    @property
    def traveller(self) -> Traveller:
        """The machine, as the other node is told of it."""
        return Traveller(name=self.name, uuid=self.uuid, online=self.online, copied=self.copied)

    def to_journal(self) -> dict[str, Any]:
        """As JSON values."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @classmethod
    def from_journal(cls, entry: dict[str, Any]) -> Ticket:
        """What `to_journal` gave."""
        return msgspec.convert(entry, cls)


def at(machine: Machine, node: str, copied: tuple[str, ...]) -> Machine:
    """The machine as its records are to be on *node*, the disks in *copied* being there."""
    vm = machine.vm
    disks = tuple(msgspec.structs.replace(disk, nodes=(node,)) if disk.id in copied else disk for disk in machine.disks)
    return Machine(vm=msgspec.structs.replace(vm, node=node, nodes=nodes_at(vm, node)), disks=disks)


def nodes_at(vm: VmRecord, node: str) -> tuple[str, ...]:
    """The nodes that may have the machine once it was moved to *node* with its disks."""
    return vm.nodes if node in vm.nodes else tuple(node if name == vm.node else name for name in vm.nodes)


def disks_in(machine: Machine, copied: tuple[str, ...]) -> tuple[DiskRecord, ...]:
    """The records of the disks in *copied*."""
    return tuple(disk for disk in machine.disks if disk.id in copied)
