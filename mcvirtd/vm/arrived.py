"""Machines that have come to this node in a migration of whose end their own node could tell nobody."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from mcvirtd.hypervisor.states import DomainState
from mcvirtd.tasks.transaction import Journal
from mcvirtd.vm.design import Machine

EXPECT, DROP_COPY = "migration.expect", "migration.drop_copy"
"""Due on the node that a machine is to come to: to find out what has come of it, and to delete copies of its disks."""


def copied_here(journal: Journal, machine: Machine) -> Set[str]:
    """The IDs of the disks of which there is a copy here, made for a migration that nobody has settled."""
    due = {arguments["disk"] for _, arguments in journal.due_of(DROP_COPY)}
    return {disk.id for disk in machine.disks if disk.id in due}


def has_come(state: DomainState | None) -> bool:
    """Whether the guest, and so the whole of its disks, has left its own node: it runs here, or has run.

    libvirt lets it run, and has it be at home here, only after the other one has sent all.
    """
    return state is not None and (state.running or state.persistent)


def at_home(machine: Machine, copied: Set[str], node: str) -> Machine:
    """The machine as it is where the copies on *node* are its disks."""
    disks = tuple(
        msgspec.structs.replace(disk, nodes=(node,)) if disk.id in copied else disk for disk in machine.disks
    )
    nodes = tuple(dict.fromkeys(node if name == machine.vm.node else name for name in machine.vm.nodes))
    vm = machine.vm if node in machine.vm.nodes or not copied else msgspec.structs.replace(machine.vm, nodes=nodes)
    return Machine(vm=vm, disks=disks)


def forget(journal: Journal, machine: Machine) -> None:
    """The machine is this node's, with all that came here of it."""
    journal.withdraw(EXPECT, name=machine.vm.name)
    for disk in machine.disks:
        journal.withdraw(DROP_COPY, disk=disk.id)
