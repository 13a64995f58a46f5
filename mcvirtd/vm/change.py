"""Changing virtual machines: all checks first, then everything together or nothing.

A change becomes a machine as it is to be. The domain is aligned with that, and only then the records are changed; if
the alignment fails, the domain is aligned with the records again. What has no way back (deleting a volume, growing one)
comes after that, as a transaction of its own that a crash does not undo but finish.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from mcvirt.errors import Conflict, DiskInUse, McvirtError, NotFound, UndoIncomplete
from mcvirt.types.vm import VmChange
from mcvirt.units import format_size
from mcvirtd.hypervisor import designer
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Change
from mcvirtd.storage.disks import detached, refuse_deleting
from mcvirtd.tasks.task import step
from mcvirtd.tasks.transaction import Transaction
from mcvirtd.vm import checks
from mcvirtd.vm.creation import disk_words, finish, network_words
from mcvirtd.vm.design import Machine
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.planning import ChangePlanner, Plan, nodes_with
from mcvirtd.vm.release import RELEASE_DISK
from mcvirtd.vm.unsettled import disks_rest, settled, stays

log = logging.getLogger(__name__)


class Changes:
    """Changes machines on this node. Callers hold the machine's lock."""

    def __init__(self, ground: Ground) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._locks = ground.locks
        self._hypervisor = ground.hypervisor
        self._domains = ground.domains
        self._designs = ground.designs
        self._disks = ground.disks
        self._release = ground.release
        self._node = ground.node
        self._planner = ChangePlanner(ground)
        ground.journal.register("disk.finish_grow", self._finish_grow)

    def plan(self, name: str, change: VmChange) -> Plan:
        """Check *change*; raises all refusals together, and changes nothing."""
        return self._planner.plan(name, change)

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
                stays(change.get(VmRecord, name))
                checks.networks_stayed(change, target.vm)
                # Only what was named: the machine may have been locked or unlocked meanwhile, which needs no lock.
                change.edit(VmRecord, name, **_differences(plan.now.vm, target.vm))
                for disk in new:
                    self._disks.put(change, disk)
                    _finish_disk(change, name, disk)
                for network in plan.new_networks:
                    _finish_network(change, name, network)
                if plan.delete is not None:
                    change.edit(DiskRecord, plan.delete.id, vm=None, slot=None)
        if plan.grow is not None:
            self.grow(plan.grow, plan.grow_to)
        if plan.delete is not None:
            self._disks.finish_delete(plan.delete.id)

    def _align(self, tx: Transaction, target: Machine) -> None:
        if target.vm.node is not None:
            active = self._domains.is_active(target.vm)
            for disk in target.disks if active else ():
                tx.undo(RELEASE_DISK, disk=disk.id)
            tx.undo("vm.align", name=target.vm.name)
            with step("Changing the domain"):
                for disk in target.disks if active else ():
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
            tx.redo("disk.finish_grow", disk=disk.id, size=size, was=disk.size)
            with step(f"Growing disk {disk.slot} to {format_size(size)}"):
                try:
                    self._finish_grow(disk.id, size, disk.size)
                except UndoIncomplete:
                    tx.leave_due()
                    raise
            tx.keep()

    def _finish_grow(self, disk: str, size: int, was: int | None = None) -> None:
        record = self._store.get(DiskRecord, disk)
        if record is None:
            return
        with self._locks.hold(*([f"vm:{record.vm}"] if record.vm else [])):
            self._grow_locked(disk, size)
        record = self._store.get(DiskRecord, disk)
        if record is None or record.deleting or was is None:
            return
        try:
            self._disks.finish_growth(record, was)
        except McvirtError as error:
            remains = "what is new of its two sides is made equal as soon as that can be done."
            raise UndoIncomplete(text=str(error), remains=remains) from error

    def _grow_locked(self, disk: str, size: int) -> None:
        record = self._store.get(DiskRecord, disk)
        if record is None or record.deleting or record.size >= size:
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
            now = change.get(DiskRecord, disk)
            # The machine may have gone to the other node, and its disk been grown further there.
            if now is None or now.size < size:
                refuse_deleting(change.edit(DiskRecord, disk, size=size))

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
                # Who deletes it on another node, or attaches it there, does not hold our locks.
                refuse_deleting(detached(change, disk_id))
                placed = change.edit(DiskRecord, disk_id, vm=placed.vm, slot=placed.slot)
                self.commit_attached(change, placed)

    def check_attach(self, name: str, disk: DiskRecord | None = None) -> None:
        """Raise all that stands against one more disk, or against that one."""
        machine = self._domains.machine(name)
        reasons = Reasons()
        with reasons.gather():
            checks.unlocked(machine.vm)
        with reasons.gather():
            stays(machine.vm)
        with reasons.gather():
            settled(self._journal, machine.vm.name)
        with reasons.gather():
            disks_rest(self._store, name)
        with reasons.gather():
            if machine.vm.node is not None:
                checks.registered_here(machine.vm, self._node)
                self._domains.require_libvirt()
        with reasons.gather():
            checks.disk_count(name, len(machine.disks), 1)
        if disk is not None:
            with reasons.gather():
                refuse_deleting(disk)
            problem = self._disks.available(disk)
            if problem:
                reasons.add(Conflict(text=f"Hard drive {disk.id} can't be used: {problem}"))
            with reasons.gather():
                self._disks.check_fits(disk, machine.disks)
                slot = checks.free_slot([each.slot or 0 for each in machine.disks])
                checks.places(machine.vm.machine, [(slot, disk.driver)])
        reasons.raise_all()

    def attach_new(self, tx: Transaction, disk: DiskRecord, name: str) -> DiskRecord:
        """Give the machine's domain the disk; returns the record that the caller is to commit."""
        machine = self._domains.machine(name)
        (placed,) = self._with_slots((disk,), name, machine.disks)
        self._align(tx, Machine(vm=machine.vm, disks=(*machine.disks, placed)))
        return placed

    def commit_attached(self, change: Change, disk: DiskRecord) -> None:
        """In the change that stores the record of a disk just attached: what that means for its machine."""
        vm = change.get(VmRecord, disk.vm or "")
        stays(vm)
        if vm is not None:
            there = [each for each in change.all(DiskRecord).values() if each.vm == vm.name and each.id != disk.id]
            change.edit(VmRecord, vm.name, nodes=nodes_with(vm, there, [disk.nodes]))
            _finish_disk(change, vm.name, disk)

    def detach(self, disk_id: str) -> None:
        """Take the hard drive out of its machine; at once where the guest runs."""
        disk = self._store.get(DiskRecord, disk_id)
        if disk is None or disk.vm is None:
            raise Conflict(text=f"Hard drive {disk_id} is attached to no virtual machine.")
        machine = self._domains.machine(disk.vm)
        reasons = Reasons()
        with reasons.gather():
            checks.unlocked(machine.vm)
        with reasons.gather():
            settled(self._journal, machine.vm.name)
        with reasons.gather():
            self._planner.check_unplug(machine, disk)
        reasons.raise_all()
        with self._journal.transaction() as tx:
            self._align(tx, Machine(vm=machine.vm, disks=tuple(each for each in machine.disks if each != disk)))
            with tx.commit() as change:
                change.edit(DiskRecord, disk_id, vm=None, slot=None)
        try:
            self._release.of_disk(disk_id)
        except McvirtError as error:
            # It is detached, as was asked for; a timer tries again.
            log.warning("hard drive %s is given up later: %s", disk_id, error)


def _differences(now: VmRecord, target: VmRecord) -> dict[str, object]:
    return {
        name: getattr(target, name)
        for name in VmRecord.__struct_fields__
        if getattr(target, name) != getattr(now, name)
    }


def _finish_disk(change: Change, name: str, disk: DiskRecord) -> None:
    """One disk that was still to come is there: the one of that size, or else any."""
    vm = change.get(VmRecord, name)
    end = disk_words(0, disk.size).partition(" (")[2]
    waiting = [words for words in (vm.unfinished if vm else ()) if words.startswith("disk ")]
    finish(change.edit, vm, *(words for words in waiting if words.endswith(f" ({end}")), *waiting)


def _finish_network(change: Change, name: str, network: str) -> None:
    """One adapter that was still to come is there: the one on that network, or else any."""
    vm = change.get(VmRecord, name)
    waiting = [words for words in (vm.unfinished if vm else ()) if not words.startswith("disk ")]
    finish(change.edit, vm, network_words(network), *waiting)
