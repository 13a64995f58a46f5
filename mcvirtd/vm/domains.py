"""The domains of this node: brought in line with the records, and asked for their state."""

from __future__ import annotations

import contextlib

from mcvirt.errors import LibvirtUnreachable, McvirtError, VmNotFound
from mcvirt.types.vm import PowerState
from mcvirtd.cluster.live import power_state
from mcvirtd.hypervisor import designer
from mcvirtd.hypervisor.design import DiskDesign, DomainDesign
from mcvirtd.hypervisor.verbs import HypervisorVerbs
from mcvirtd.hypervisor.xml.cdrom import cdrom_xml
from mcvirtd.hypervisor.xml.disk import disk_xml
from mcvirtd.hypervisor.xml.domain import domain_xml
from mcvirtd.hypervisor.xml.interface import interface_xml
from mcvirtd.hypervisor.xml.live import LiveDomain, live_domain
from mcvirtd.state.records import VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.transaction import Journal
from mcvirtd.vm.design import Designer, Machine, disks_of

# Buses on which a guest takes and gives disks while it runs.
HOT_BUSES = frozenset({"virtio", "scsi", "usb"})


class Domains:
    """Aligns libvirt with the records.

    `align` is the one way in which a domain is changed: it defines the domain anew from a machine's values and, where
    the guest runs, adds, removes and changes devices until they fit. Since it goes by what is there, it is also how a
    change is undone, and how one that a crash interrupted is settled.
    """

    def __init__(
        self,
        *,
        store: Store,
        hypervisor: HypervisorVerbs,
        designs: Designer,
        journal: Journal,
        locks: Locks,
        node: str,
    ) -> None:
        self._store = store
        self._locks = locks
        self._hypervisor = hypervisor
        self._designs = designs
        self._node = node
        journal.register("vm.align", self._align_stored)
        journal.register("vm.undefine", self._undefine_unless_stored)

    def machine(self, name: str) -> Machine:
        """A virtual machine with its disks, from the records; VmNotFound if there is none."""
        vm = self._store.get(VmRecord, name)
        if vm is None:
            raise VmNotFound(name=name)
        return Machine(vm=vm, disks=disks_of(self._store, name))

    def power_state(self, vm: VmRecord) -> PowerState:
        """What the machine does, as far as this node knows."""
        if vm.node is None or not self._hypervisor.connected:
            return PowerState.UNKNOWN
        state = self._hypervisor.state(vm.uuid)
        if state is None:
            return PowerState.UNKNOWN
        return power_state(state)

    def is_missing(self, vm: VmRecord) -> bool:
        """Whether libvirt has lost the domain of a machine that is registered here."""
        return vm.node == self._node and self._hypervisor.connected and self._hypervisor.state(vm.uuid) is None

    def is_active(self, vm: VmRecord) -> bool:
        """Whether there is a QEMU process for the machine; raises LibvirtUnreachable if that can't be known."""
        self.require_libvirt()
        state = self._hypervisor.state(vm.uuid)
        return state is not None and state.active

    def require_libvirt(self) -> None:
        """Raise LibvirtUnreachable, with its reason, unless libvirt answers."""
        if not self._hypervisor.connected:
            try:
                self._hypervisor.facts()
            except LibvirtUnreachable:
                raise
            except McvirtError as error:
                raise LibvirtUnreachable(node=self._node, uri="its socket", reason=f"{error}") from None

    def define(self, machine: Machine, before: str = "") -> str:
        """Define the domain from *machine*; a running one takes it over at its next start.

        Returns what the domain is now, for who may do it again: libvirt need not hear it if *before* was just that.
        """
        description = domain_xml(self._designs.design(machine))
        if description != before:
            self._hypervisor.define(description)
        return description

    def align(self, machine: Machine) -> None:
        """Make the domain what *machine* says, its running devices included."""
        design = self._designs.design(machine)
        self._hypervisor.define(domain_xml(design))
        state = self._hypervisor.state(machine.vm.uuid)
        if state is not None and state.active:
            self._align_devices(design, live_domain(self._hypervisor.description(machine.vm.uuid)))

    def live(self, vm: VmRecord) -> LiveDomain | None:
        """What the running domain has now; None if it does not run; LibvirtUnreachable if that can't be known."""
        if not self.is_active(vm):
            return None
        return live_domain(self._hypervisor.description(vm.uuid))

    def restart_needed(self, machine: Machine) -> bool:
        """Whether the machine runs with other values than its record has."""
        with contextlib.suppress(McvirtError):
            live = self.live(machine.vm)
            if live is not None:
                return _facts(live) != _facts(live_domain(self._hypervisor.description(machine.vm.uuid, inactive=True)))
        return False

    def _align_devices(self, design: DomainDesign, live: LiveDomain) -> None:
        uuid = design.uuid
        wanted = {target(design, disk): disk for disk in design.disks}
        for name, there in live.disks.items():
            if name not in wanted or wanted[name].source != there.source:
                self._hypervisor.detach_device(uuid, there.xml, live=True, config=False)
        for name, disk in wanted.items():
            kept = name in live.disks and live.disks[name].source == disk.source
            if not kept and designer.bus_on(design.machine, disk.bus) in HOT_BUSES:
                self._hypervisor.attach_device(uuid, disk_xml(disk, design.machine), live=True, config=False)
        adapters = {adapter.mac: adapter for adapter in design.adapters}
        for mac, there in live.adapters.items():
            if mac not in adapters:
                self._hypervisor.detach_device(uuid, there.xml, live=True, config=False)
        for mac, adapter in adapters.items():
            if mac not in live.adapters:
                self._hypervisor.attach_device(uuid, interface_xml(adapter), live=True, config=False)
            elif live.adapters[mac].source != adapter.bridge:
                self._hypervisor.update_device(uuid, interface_xml(adapter), live=True, config=False)
        if live.disc != design.iso:
            self._hypervisor.update_device(uuid, cdrom_xml(design.machine, design.iso), live=True, config=False)

    def _align_stored(self, name: str) -> None:
        """Undo: the domain is as the record in the store says; nothing where there is none, or none registered here."""
        # What could not be undone at once is undone later, when others may be at work on the machine.
        with self._locks.hold(f"vm:{name}"):
            vm = self._store.get(VmRecord, name)
            if vm is not None and vm.node == self._node:
                self.align(self.machine(name))

    def _undefine_unless_stored(self, name: str, uuid: str) -> None:
        """Undo: no domain, unless the record says by now that the machine is registered here."""
        with self._locks.hold(f"vm:{name}"):
            vm = self._store.get(VmRecord, name)
            if vm is None or vm.uuid != uuid or vm.node != self._node:
                self._hypervisor.undefine(uuid)


def _facts(domain: LiveDomain) -> tuple[object, ...]:
    """What is to be the same in a running domain and in its definition."""
    disks = {name: disk.source for name, disk in domain.disks.items()}
    adapters = {mac: adapter.source for mac, adapter in domain.adapters.items()}
    return domain.memory, domain.cpu_count, domain.video, domain.features, disks, adapters, domain.disc


def target(design: DomainDesign, disk: DiskDesign) -> str:
    """What libvirt calls a disk of the domain."""
    return designer.target_name(design.machine, disk.bus, disk.slot)
