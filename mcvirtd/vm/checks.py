"""What is asked before anything is changed. Each check raises its refusal; Reasons tells all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

from mcvirt.errors import (
    BadArgument,
    Conflict,
    NotFound,
    TooManyDisks,
    VmLocked,
    VmNotRegistered,
    VmRegistered,
)
from mcvirt.names import mac_address
from mcvirt.types.vm import DiskDriver, GraphicsDriver, Machine
from mcvirt.units import KIB, MIB, format_size
from mcvirtd.hypervisor import designer
from mcvirtd.hypervisor.design import Bus
from mcvirtd.state.records import NetworkRecord, NodeRecord, VmRecord
from mcvirtd.state.store import Change, Store
from mcvirtd.vm.design import UNUSABLE_GRAPHICS

MOST_DISKS = 4
MOST_CPUS = 255
MOST_ADAPTERS = 16
LEAST_MEMORY = 4 * MIB


def memory(size: int, of_node: int) -> None:
    """*size* bytes can be a machine's memory on a node with *of_node* bytes."""
    if size < LEAST_MEMORY:
        raise BadArgument(what="memory", why=f"{format_size(max(size, 0))} is too little; 4 MiB is the least.")
    if size % KIB:
        raise BadArgument(what="memory", why=f"{size} bytes is not a whole number of KiB.")
    if of_node and size > of_node:
        raise BadArgument(
            what="memory", why=f"{format_size(size)} is more than the {format_size(of_node)} that the node has."
        )


def cpu_count(count: int) -> None:
    """*count* can be a machine's number of processors."""
    if not 1 <= count <= MOST_CPUS:
        raise BadArgument(what="number of processors", why=f"{count} is not between 1 and {MOST_CPUS}.")


def graphics(driver: GraphicsDriver) -> None:
    """QEMU has that display adapter."""
    if driver in UNUSABLE_GRAPHICS:
        usable = ", ".join(sorted(each.value for each in GraphicsDriver if each not in UNUSABLE_GRAPHICS))
        raise BadArgument(what="graphics driver", why=f"QEMU has no '{driver.value}'. Choose one of {usable}.")


def network(store: Store, name: str, bridge_problem: Callable[[str], str]) -> None:
    """The network exists and its bridge is there on this node."""
    record = store.get(NetworkRecord, name)
    if record is None:
        raise NotFound(kind="network", name=name, hint=" `mcvirt network list` shows all of them.")
    problem = bridge_problem(record.interface)
    if problem:
        raise Conflict(text=f"Network '{name}' can't be used on this node: {problem}")


def networks_stayed(change: Change, vm: VmRecord) -> None:
    """No network of the machine was deleted while it was worked on; to be asked in the change that stores it."""
    for name in dict.fromkeys(vm.adapters.values()):
        if change.get(NetworkRecord, name) is None:
            raise Conflict(text=f"Network '{name}' was deleted meanwhile.")


def nodes(store: Store, names: Sequence[str], local: str) -> None:
    """The nodes exist, and the local one is among them."""
    for name in names:
        if store.get(NodeRecord, name) is None:
            raise NotFound(kind="node", name=name, hint=" `mcvirt info` shows all of them.")
    if names and local not in names:
        raise BadArgument(what="nodes", why=f"this node, '{local}', must be among them.")


def disk_count(name: str, there: int, more: int) -> None:
    """The machine may have *more* disks than the ones there."""
    if there + more > MOST_DISKS:
        raise TooManyDisks(name=name, count=there + more, limit=MOST_DISKS)


def places(machine: Machine, disks: Iterable[tuple[int, DiskDriver]]) -> None:
    """Disks of these numbers have a place on their buses (IDE has three besides the CD drive)."""
    for slot, driver in disks:
        designer.target_name(machine.value, cast(Bus, driver.value.lower()), slot)


def adapter_count(there: int, more: int) -> None:
    """The machine may have *more* adapters than the ones there."""
    if there + more > MOST_ADAPTERS:
        raise BadArgument(what="network adapters", why=f"{there + more} are more than {MOST_ADAPTERS}, the most.")


def has_adapter(vm: VmRecord, mac: str) -> str:
    """The address in the form of the record, if the machine has that adapter."""
    address = mac_address(mac)
    if address not in vm.adapters:
        raise NotFound(kind="network adapter", name=address, hint=f" `mcvirt info {vm.name}` shows all of them.")
    return address


def unlocked(vm: VmRecord) -> None:
    """The machine is not locked."""
    if vm.locked:
        raise VmLocked(name=vm.name)


def registered_here(vm: VmRecord, node: str) -> None:
    """The machine is registered on this node."""
    if vm.node is None:
        raise VmNotRegistered(name=vm.name)
    if vm.node != node:
        raise VmRegistered(name=vm.name, node=vm.node)


def free_slot(taken: Sequence[int]) -> int:
    """The lowest number that no disk has."""
    return next(number for number in range(1, MOST_DISKS + 2) if number not in taken)
