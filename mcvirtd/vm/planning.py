"""Checking changes of virtual machines: everything is asked before anything is done, and all that is wrong is said."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mcvirt.errors import BadArgument, Conflict, NotFound, Refused
from mcvirt.types.vm import Flag, VmChange
from mcvirt.units import SECTOR
from mcvirtd.hypervisor import designer
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.storage.disks import DiskPlan
from mcvirtd.vm import checks
from mcvirtd.vm.creation import new_mac
from mcvirtd.vm.design import Machine
from mcvirtd.vm.domains import HOT_BUSES
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import disks_rest, settled, stays


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A change that has passed its checks: the machine as it is to be, and what else there is to do."""

    now: Machine
    target: Machine
    new_disks: tuple[DiskPlan, ...]
    new_networks: tuple[str, ...]
    delete: DiskRecord | None
    grow: DiskRecord | None
    grow_to: int


class ChangePlanner:
    """Makes plans of changes. Nothing is changed by it."""

    def __init__(self, ground: Ground) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._hypervisor = ground.hypervisor
        self._domains = ground.domains
        self._designs = ground.designs
        self._disks = ground.disks
        self._node = ground.node
        self._bridge_problem = ground.bridge_problem

    def plan(self, name: str, change: VmChange) -> Plan:
        """Check *change*; raises all refusals together, and changes nothing."""
        machine = self._domains.machine(name)
        vm = machine.vm
        if vm.node is not None:
            checks.registered_here(vm, self._node)
            self._domains.require_libvirt()
        reasons = Reasons()
        with reasons.gather():
            checks.unlocked(vm)
        with reasons.gather():
            stays(vm)
        with reasons.gather():
            settled(self._journal, name)
        if change.add_disks or change.delete_disk is not None or change.grow_disk is not None:
            with reasons.gather():
                disks_rest(self._store, name)
        vm = self._plan_values(vm, change, reasons)
        vm = self._plan_adapters(vm, change, reasons)
        deleted = self._plan_delete(machine, change, reasons)
        grown, grow_to = self._plan_grow(machine, change, reasons)
        if deleted is not None and deleted == grown:
            reasons.add(BadArgument(what="disk", why=f"disk {deleted.slot} can't be deleted and grown at once."))
        left = tuple(disk for disk in machine.disks if disk != deleted)
        plans: tuple[DiskPlan, ...] = ()
        with reasons.gather():
            checks.disk_count(name, len(left), len(change.add_disks))
            pair = vm.nodes if len(vm.nodes) == 2 else ()
            plans = self._disks.plan(change.add_disks, node=self._node, taken=left, nodes=pair)
            self._check_places(machine, left, plans)
            vm = msgspec.structs.replace(vm, nodes=nodes_with(vm, left, [plan.nodes for plan in plans]))
        reasons.raise_all()
        return Plan(
            now=machine,
            target=Machine(vm=vm, disks=left),
            new_disks=plans,
            new_networks=change.add_networks,
            delete=deleted,
            grow=grown,
            grow_to=grow_to,
        )

    @staticmethod
    def _check_places(machine: Machine, there: Sequence[DiskRecord], plans: Sequence[DiskPlan]) -> None:
        taken = [disk.slot or 0 for disk in there]
        for plan in plans:
            slot = checks.free_slot(taken)
            taken.append(slot)
            checks.places(machine.vm.machine, [(slot, plan.driver)])

    def _plan_values(self, vm: VmRecord, change: VmChange, reasons: Reasons) -> VmRecord:
        replace = msgspec.structs.replace
        if change.memory is not None:
            with reasons.gather():
                _unchanged("memory", change.old_memory, vm.memory)
                of_node = self._hypervisor.facts().memory if self._hypervisor.connected else 0
                checks.memory(change.memory, of_node)
            vm = replace(vm, memory=change.memory)
        if change.cpu_count is not None:
            with reasons.gather():
                _unchanged("number of processors", change.old_cpu_count, vm.cpu_count)
                checks.cpu_count(change.cpu_count)
            vm = replace(vm, cpu_count=change.cpu_count)
        if change.graphics_driver is not None:
            with reasons.gather():
                checks.graphics(change.graphics_driver)
            vm = replace(vm, graphics_driver=change.graphics_driver)
        if change.autostart is not None:
            vm = replace(vm, autostart=change.autostart)
        if change.autodeflate is not None:
            vm = replace(vm, autodeflate=change.autodeflate)
        if change.iso is not None:
            vm = replace(vm, iso=change.iso or None, boot_iso=vm.boot_iso and bool(change.iso))
        with reasons.gather():
            self._check_image(vm, there=change.iso is None)
        with reasons.gather():
            vm = replace(vm, flags=_flags(vm, change))
        with reasons.gather():
            vm = replace(vm, delete_protection=_protection(vm, change))
        return vm

    def _check_image(self, vm: VmRecord, *, there: bool) -> None:
        try:
            self._designs.iso_path(vm)
        except NotFound:
            if not there:
                raise
            # Somebody has deleted the file itself. Without it the domain can't be defined anew.
            raise Conflict(
                text=f"ISO image '{vm.iso}', which is in the drive of virtual machine '{vm.name}', is gone. "
                f"`mcvirt update {vm.name} --iso` empties the drive."
            ) from None

    def _plan_adapters(self, vm: VmRecord, change: VmChange, reasons: Reasons) -> VmRecord:
        adapters = dict(vm.adapters)
        moved = set()
        for mac, network in change.change_networks.items():
            with reasons.gather():
                address = checks.has_adapter(vm, mac)
                moved.add(address)
                checks.network(self._store, network, self._bridge_problem)
                adapters[address] = network
        for mac in change.remove_networks:
            with reasons.gather():
                address = checks.has_adapter(vm, mac)
                if adapters.pop(address, None) is None or address in moved:
                    raise BadArgument(what=f"network adapter {address}", why="it is named twice.")
        for network in dict.fromkeys(change.add_networks):
            with reasons.gather():
                checks.network(self._store, network, self._bridge_problem)
        with reasons.gather():
            checks.adapter_count(len(adapters), len(change.add_networks))
        for network in change.add_networks:
            adapters[new_mac(self._store)] = network
        return msgspec.structs.replace(vm, adapters=adapters)

    def _plan_delete(self, machine: Machine, change: VmChange, reasons: Reasons) -> DiskRecord | None:
        if change.delete_disk is None:
            return None
        disk = machine.disk(change.delete_disk)
        if disk is None:
            reasons.add(_no_disk(machine, change.delete_disk))
            return None
        with reasons.gather():
            self.check_unplug(machine, disk)
            self._disks.check_delete(disk)
        return disk

    def _plan_grow(self, machine: Machine, change: VmChange, reasons: Reasons) -> tuple[DiskRecord | None, int]:
        if change.grow_disk is None and change.grow_by is None:
            return None, 0
        if change.grow_disk is None or change.grow_by is None:
            reasons.add(BadArgument(what="growing a disk", why="name both the disk and the size to add."))
            return None, 0
        disk = machine.disk(change.grow_disk)
        if disk is None:
            reasons.add(_no_disk(machine, change.grow_disk))
            return None, 0
        with reasons.gather():
            if change.grow_by < SECTOR or change.grow_by % SECTOR:
                raise BadArgument(what="size to add", why=f"it must be a positive multiple of {SECTOR} bytes.")
            self._disks.check_grow(disk, disk.size + change.grow_by)
        return disk, disk.size + change.grow_by

    def check_unplug(self, machine: Machine, disk: DiskRecord) -> None:
        """Raise Conflict if the guest runs and can't give the disk away while it does."""
        live = self._domains.live(machine.vm) if machine.vm.node is not None else None
        if live is None:
            return
        design = self._designs.disk(disk)
        has_it = designer.target_name(machine.vm.machine.value, design.bus, design.slot) in live.disks
        if has_it and designer.bus_on(machine.vm.machine.value, design.bus) not in HOT_BUSES:
            raise Conflict(
                text=f"Disk {disk.slot} of virtual machine '{machine.vm.name}' is on {disk.driver.value}, which "
                "gives no disk away while the machine runs. Shut it down first."
            )


def nodes_with(vm: VmRecord, there: Sequence[DiskRecord], more: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The nodes on which the machine can run once it has disks that are on *more* nodes, besides those *there*."""
    if not more:
        return vm.nodes
    # A machine without disks has waited for its first one to say where it can run.
    nodes = vm.nodes if there else more[0]
    return tuple(name for name in nodes if all(name in each for each in more))


def _unchanged(what: str, believed: int | None, now: int) -> None:
    if believed is not None and believed != now:
        raise Conflict(
            text=f"The {what} was changed meanwhile: it is {now} now, not {believed}. Look again, and repeat."
        )


def _flags(vm: VmRecord, change: VmChange) -> tuple[Flag, ...]:
    both = set(change.add_flags) & set(change.remove_flags)
    if both:
        raise BadArgument(what="flags", why=f"'{both.pop().value}' can't be added and removed at once.")
    flags = [flag for flag in vm.flags if flag not in change.remove_flags]
    return tuple(dict.fromkeys((*flags, *change.add_flags)))


def _protection(vm: VmRecord, change: VmChange) -> bool:
    if change.enable_delete_protection:
        if vm.delete_protection:
            raise Conflict(text=f"Virtual machine '{vm.name}' is protected against deletion already.")
        return True
    if change.disable_delete_protection is not None:
        if not vm.delete_protection:
            raise Conflict(text=f"Virtual machine '{vm.name}' is not protected against deletion.")
        if change.disable_delete_protection != vm.name[::-1]:
            raise BadArgument(what="confirmation code", why="it is not the name of the virtual machine reversed.")
        return False
    return vm.delete_protection


def _no_disk(machine: Machine, slot: int) -> Refused:
    return NotFound(
        kind=f"disk of '{machine.vm.name}'", name=slot, hint=f" `mcvirt info {machine.vm.name}` shows all of them."
    )
