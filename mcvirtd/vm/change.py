"""Changing virtual machines: all checks first, then everything together or nothing.

A change becomes a machine as it is to be. The domain is aligned with that, and only then the records are changed; if
the alignment fails, the domain is aligned with the records again. What has no way back (deleting a volume, growing one)
comes after that, as a transaction of its own that a crash does not undo but finish.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mcvirt.errors import BadArgument, Conflict, DiskInUse, NotFound, Refused
from mcvirt.types.vm import Flag, VmChange
from mcvirt.units import SECTOR, format_size
from mcvirtd.hypervisor import designer
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.storage.disks import DiskPlan
from mcvirtd.tasks.task import step
from mcvirtd.tasks.transaction import Transaction
from mcvirtd.vm import checks
from mcvirtd.vm.creation import disk_words, finish, network_words, new_mac
from mcvirtd.vm.design import Machine
from mcvirtd.vm.domains import HOT_BUSES
from mcvirtd.vm.ground import Ground


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A change that has passed its checks: the machine as it is to be, and what else there is to do."""

    now: Machine
    target: Machine
    new_disks: tuple[DiskPlan, ...]
    new_networks: tuple[str, ...]
    delete: DiskRecord | None
    grow: DiskRecord | None
    grow_to: int


class Changes:
    """Changes machines on this node. Callers hold the machine's lock."""

    def __init__(self, ground: Ground) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._hypervisor = ground.hypervisor
        self._domains = ground.domains
        self._designs = ground.designs
        self._disks = ground.disks
        self._node = ground.node
        self._bridge_problem = ground.bridge_problem
        ground.journal.register("disk.finish_grow", self._finish_grow)

    # --- checks ---------------------------------------------------------------------------------------------------

    def plan(self, name: str, change: VmChange) -> Plan:
        """Check *change*; raises all refusals together, and changes nothing."""
        machine = self._domains.machine(name)
        vm = machine.vm
        if vm.node is not None:
            checks.registered_here(vm, self._node)
            self._domains.require_libvirt()
        reasons = checks.Reasons()
        with reasons.gather():
            checks.unlocked(vm)
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
            plans = self._disks.plan(change.add_disks, node=self._node, taken=left)
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

    def _plan_values(self, vm: VmRecord, change: VmChange, reasons: checks.Reasons) -> VmRecord:
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
                self._designs.iso_path(vm)
        with reasons.gather():
            vm = replace(vm, flags=_flags(vm, change))
        with reasons.gather():
            vm = replace(vm, delete_protection=_protection(vm, change))
        return vm

    def _plan_adapters(self, vm: VmRecord, change: VmChange, reasons: checks.Reasons) -> VmRecord:
        adapters = dict(vm.adapters)
        for mac, network in change.change_networks.items():
            with reasons.gather():
                address = checks.has_adapter(vm, mac)
                checks.network(self._store, network, self._bridge_problem)
                adapters[address] = network
        for mac in change.remove_networks:
            with reasons.gather():
                address = checks.has_adapter(vm, mac)
                if adapters.pop(address, None) is None or address in change.change_networks:
                    raise BadArgument(what=f"network adapter {address}", why="it is named twice.")
        for network in dict.fromkeys(change.add_networks):
            with reasons.gather():
                checks.network(self._store, network, self._bridge_problem)
        with reasons.gather():
            checks.adapter_count(len(adapters), len(change.add_networks))
        for network in change.add_networks:
            adapters[new_mac(self._store)] = network
        return msgspec.structs.replace(vm, adapters=adapters)

    def _plan_delete(self, machine: Machine, change: VmChange, reasons: checks.Reasons) -> DiskRecord | None:
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

    def _plan_grow(self, machine: Machine, change: VmChange, reasons: checks.Reasons) -> tuple[DiskRecord | None, int]:
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
        if machine.vm.node is None or not self._domains.is_active(machine.vm):
            return
        design = self._designs.disk(disk)
        if designer.bus_on(machine.vm.machine.value, design.bus) not in HOT_BUSES:
            raise Conflict(
                text=f"Disk {disk.slot} of virtual machine '{machine.vm.name}' is on {disk.driver.value}, which "
                "gives no disk away while the machine runs. Shut it down first."
            )

    # --- acts -----------------------------------------------------------------------------------------------------

    def carry_out(self, plan: Plan) -> None:
        """Do what was planned."""
        name = plan.now.vm.name
        with self._journal.transaction() as tx:
            made = tuple(self._disks.create(tx, disk) for disk in plan.new_disks)
            new = self._with_slots(made, name, plan.target.disks)
            target = Machine(vm=plan.target.vm, disks=(*plan.target.disks, *new))
            if target != plan.now:
                self._align(tx, target)
            with tx.commit() as change:
                change.put(target.vm)
                for disk in new:
                    change.put(disk)
                    finish(change.edit, change.get(VmRecord, name), _unfinished_disk(change.get(VmRecord, name), disk))
                for network in plan.new_networks:
                    finish(change.edit, change.get(VmRecord, name), network_words(network))
                if plan.delete is not None:
                    change.edit(DiskRecord, plan.delete.id, vm=None, slot=None)
        if plan.grow is not None:
            self.grow(plan.grow, plan.grow_to)
        if plan.delete is not None:
            self._disks.finish_delete(plan.delete.id)

    def _align(self, tx: Transaction, target: Machine) -> None:
        if target.vm.node is not None:
            tx.undo("vm.align", name=target.vm.name)
            with step("Changing the domain"):
                if self._domains.is_active(target.vm):
                    for disk in target.disks:
                        self._disks.activate(disk)
                self._domains.align(target)

    @staticmethod
    def _with_slots(made: Sequence[DiskRecord], name: str, there: Sequence[DiskRecord]) -> tuple[DiskRecord, ...]:
        taken = [disk.slot or 0 for disk in there]
        placed = []
        for disk in made:
            slot = checks.free_slot(taken)
            taken.append(slot)
            placed.append(msgspec.structs.replace(disk, vm=name, slot=slot))
        return tuple(placed)

    def grow(self, disk: DiskRecord, size: int) -> None:
        """Make the disk *size* bytes long, also for a guest that runs."""
        with self._journal.transaction() as tx:
            tx.redo("disk.finish_grow", disk=disk.id, size=size)
            with step(f"Growing disk {disk.slot} to {format_size(size)}"):
                self._finish_grow(disk.id, size)
            tx.keep()

    def _finish_grow(self, disk: str, size: int) -> None:
        record = self._store.get(DiskRecord, disk)
        if record is None or record.size >= size:
            return
        vm = self._store.get(VmRecord, record.vm) if record.vm else None
        live = self._domains.live(vm) if vm is not None and vm.node == self._node else None
        # QEMU holds a running guest's qcow2 file: then it alone may make it longer.
        by_qemu = live is not None and self._disks.source(record).format == "qcow2"
        if not by_qemu:
            size = max(size, self._disks.grow(record, size))
        if live is not None and vm is not None:
            design = self._designs.disk(record)
            target = designer.target_name(vm.machine.value, design.bus, design.slot)
            self._hypervisor.resize_block(vm.uuid, target, size)
        with self._store.change() as change:
            change.edit(DiskRecord, disk, size=size)

    # --- for hard drives that are objects of their own ------------------------------------------------------------

    def attach(self, disk_id: str, name: str) -> None:
        """Attach a detached hard drive; at once where the guest runs."""
        disk = self._store.get(DiskRecord, disk_id)
        if disk is None:
            raise NotFound(kind="hard drive", name=disk_id, hint=" `mcvirt hard-drive list` shows all of them.")
        if disk.vm is not None:
            raise DiskInUse(disk=disk_id, vm=disk.vm)
        self.check_attach(name, disk)
        with self._journal.transaction() as tx:
            placed = self.attach_new(tx, disk, name)
            with tx.commit() as change:
                change.put(placed)

    def check_attach(self, name: str, disk: DiskRecord | None = None) -> None:
        """Raise all that stands against one more disk, or against that one."""
        machine = self._domains.machine(name)
        reasons = checks.Reasons()
        with reasons.gather():
            checks.unlocked(machine.vm)
        with reasons.gather():
            if machine.vm.node is not None:
                checks.registered_here(machine.vm, self._node)
                self._domains.require_libvirt()
        with reasons.gather():
            checks.disk_count(name, len(machine.disks), 1)
        if disk is not None:
            problem = self._disks.available(disk)
            if problem:
                reasons.add(Conflict(text=f"Hard drive {disk.id} can't be used: {problem}"))
            with reasons.gather():
                self._disks.check_fits(disk, machine.disks)
        reasons.raise_all()

    def attach_new(self, tx: Transaction, disk: DiskRecord, name: str) -> DiskRecord:
        """Give the machine's domain the disk; returns the record that the caller is to commit."""
        machine = self._domains.machine(name)
        (placed,) = self._with_slots((disk,), name, machine.disks)
        self._align(tx, Machine(vm=machine.vm, disks=(*machine.disks, placed)))
        return placed

    def detach(self, disk_id: str) -> None:
        """Take the hard drive out of its machine; at once where the guest runs."""
        disk = self._store.get(DiskRecord, disk_id)
        if disk is None or disk.vm is None:
            raise Conflict(text=f"Hard drive {disk_id} is attached to no virtual machine.")
        machine = self._domains.machine(disk.vm)
        reasons = checks.Reasons()
        with reasons.gather():
            checks.unlocked(machine.vm)
        with reasons.gather():
            self.check_unplug(machine, disk)
        reasons.raise_all()
        with self._journal.transaction() as tx:
            self._align(tx, Machine(vm=machine.vm, disks=tuple(each for each in machine.disks if each != disk)))
            with tx.commit() as change:
                change.edit(DiskRecord, disk_id, vm=None, slot=None)


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


def _unfinished_disk(vm: VmRecord | None, disk: DiskRecord) -> str:
    """The words in `unfinished` that this disk settles: a disk of its size that is still to come."""
    end = disk_words(0, disk.size).partition(" (")[2]
    return next((words for words in (vm.unfinished if vm else ()) if words.endswith(f" ({end}")), "")
