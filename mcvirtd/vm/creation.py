"""Creating virtual machines.

The record comes first: from then on the machine is visible, and whatever step fails leaves it so, for `update` to
repair. Each disk is a transaction of its own, which leaves the whole disk or nothing of it. Only a cancelled creation
takes the machine away again: who cancels does not want it.
"""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Callable, Sequence

import msgspec

from mcvirt import names
from mcvirt.errors import AlreadyExists, Conflict, McvirtError, TaskCancelled, VmIncomplete, VmNotFound
from mcvirt.types.vm import DiskDriver, DiskSpec, GraphicsDriver, Machine, VmSpec
from mcvirt.units import format_size
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import NetworkRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.disks import DiskPlan
from mcvirtd.tasks.task import current_task, step
from mcvirtd.vm import checks
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.registration import still_free
from mcvirtd.vm.unsettled import stays

_VNC_ALPHABET = string.ascii_letters + string.digits
_VNC_LENGTH = 8  # VNC takes no longer one


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A creation that has passed its checks."""

    vm: VmRecord
    disks: tuple[DiskPlan, ...]
    networks: tuple[str, ...]


class Creation:
    """Makes machines on this node. *remove* takes a machine away with all that it has."""

    def __init__(self, ground: Ground, remove: Callable[[str], None]) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._hypervisor = ground.hypervisor
        self._domains = ground.domains
        self._disks = ground.disks
        self._node = ground.node
        self._bridge_problem = ground.bridge_problem
        self._bridges_at = ground.bridges_at
        self._remove = remove

    def plan(self, spec: VmSpec) -> Plan:
        """Check *spec*; raises all refusals together, and changes nothing."""
        self._domains.require_libvirt()
        reasons = Reasons()
        with reasons.gather():
            names.vm_name(spec.name)
            self._is_new(spec.name)
        with reasons.gather():
            checks.memory(spec.memory, self._hypervisor.facts().memory)
        with reasons.gather():
            checks.cpu_count(spec.cpu_count)
        with reasons.gather():
            checks.nodes(self._store, spec.nodes, self._node)
        with reasons.gather():
            checks.graphics(spec.graphics_driver or GraphicsDriver.VIRTIO)
        for network in dict.fromkeys(spec.networks):
            with reasons.gather():
                checks.network(self._store, network, self._bridge_problem)
        with reasons.gather():
            checks.adapter_count(0, len(spec.networks))
        with reasons.gather():
            checks.disk_count(spec.name, 0, len(spec.disks))
        machine = spec.machine or _machine_for(spec.disks)
        disks: tuple[DiskPlan, ...] = ()
        with reasons.gather():
            disks = self._disks.plan(spec.disks, node=self._node, nodes=spec.nodes)
            checks.places(machine, [(slot, disk.driver) for slot, disk in enumerate(disks, 1)])
        self._check_other_nodes(spec, disks, reasons)
        reasons.raise_all()
        vm = VmRecord(
            name=spec.name,
            id=names.new_id("vm"),
            uuid=str(uuid.uuid4()),
            memory=spec.memory,
            cpu_count=spec.cpu_count,
            nodes=tuple(dict.fromkeys(spec.nodes)) or self._nodes_of(disks),
            machine=machine,
            graphics_driver=spec.graphics_driver or GraphicsDriver.VIRTIO,
            flags=tuple(dict.fromkeys(spec.flags)),
            vnc_password="".join(secrets.choice(_VNC_ALPHABET) for _ in range(_VNC_LENGTH)),
            unfinished=(
                *(disk_words(number, plan.size) for number, plan in enumerate(disks, 1)),
                *(network_words(network) for network in spec.networks),
            ),
        )
        return Plan(vm=vm, disks=disks, networks=spec.networks)

    def _check_other_nodes(self, spec: VmSpec, disks: Sequence[DiskPlan], reasons: Reasons) -> None:
        """All nodes that are to be able to run the machine have what it stands on."""
        others = [name for name in dict.fromkeys(spec.nodes) if name != self._node]
        for node in others:
            for slot, disk in enumerate(disks, 1):
                if node not in disk.nodes:
                    there = ", ".join(f"'{name}'" for name in disk.nodes)
                    reasons.add(Conflict(text=f"Node '{node}' could not run it: disk {slot} would be on {there} only."))
        for name in dict.fromkeys(spec.networks):
            record = self._store.get(NetworkRecord, name)
            faults = self._bridges_at(others, record.interface) if record is not None and others else {}
            for node, found in sorted(faults.items()):
                if found:
                    reasons.add(Conflict(text=f"Network '{name}' can't be used on node '{node}': {' '.join(found)}"))

    def _nodes_of(self, disks: tuple[DiskPlan, ...]) -> tuple[str, ...]:
        """The nodes that can have all the disks: with networks, which are everywhere, that is all a machine needs."""
        if not disks:
            return (self._node,)
        return tuple(sorted(frozenset.intersection(*(frozenset(disk.nodes) for disk in disks))))

    def _is_new(self, name: str) -> None:
        if self._store.get(VmRecord, name) is not None:
            raise AlreadyExists(kind="virtual machine", name=name)
        if any(state.name == name for state in self._hypervisor.domains().values()):
            raise Conflict(
                text=f"libvirt on this node has a domain called '{name}' that mcvirt does not manage. "
                "Choose another name, or rename that domain with `virsh domrename`."
            )

    def carry_out(self, plan: Plan) -> None:
        """Make the machine; VmIncomplete if a step after the record fails."""
        name = plan.vm.name
        with self._store.change() as change:
            if change.get(VmRecord, name) is not None:
                raise AlreadyExists(kind="virtual machine", name=name)
            change.put(plan.vm)
        failure: McvirtError | None = None
        try:
            self._add_disks(name, plan.disks)
            self._add_networks(name, plan.networks)
        except TaskCancelled:
            self._take_away(name)
            raise
        except McvirtError as error:
            failure = error
        try:
            with step("Registering the machine in libvirt"):
                self.register(name)
        except TaskCancelled:
            self._take_away(name)
            raise
        except McvirtError as error:
            failure = failure or error
        if failure is not None:
            raise VmIncomplete(name=name, reason=str(failure)) from failure

    def _take_away(self, name: str) -> None:
        with current_task().shielded():
            self._remove(name)

    def _add_disks(self, name: str, plans: tuple[DiskPlan, ...]) -> None:
        for slot, plan in enumerate(plans, 1):
            with self._journal.transaction() as tx:
                disk = self._disks.create(tx, plan)
                with tx.commit() as change:
                    if change.get(VmRecord, name) is None:
                        raise VmNotFound(name=name)
                    stays(change.get(VmRecord, name))
                    self._disks.put(change, msgspec.structs.replace(disk, vm=name, slot=slot))
                    finish(change.edit, change.get(VmRecord, name), disk_words(slot, plan.size))

    def _add_networks(self, name: str, networks: tuple[str, ...]) -> None:
        for network in networks:
            current_task().check()
            with self._store.change() as change:
                # Somebody may have deleted the network, or given the address away, since the checks.
                checks.network(self._store, network, self._bridge_problem)
                vm = change.edit(VmRecord, name)
                adapters = {**vm.adapters, new_mac(self._store): network}
                finish(change.edit, change.edit(VmRecord, name, adapters=adapters), network_words(network))

    def register(self, name: str) -> None:
        """Define the domain, and make this node the one that runs it; VmRegistered if another one has become that."""
        with self._journal.transaction() as tx:
            machine = self._domains.machine(name)
            tx.undo("vm.undefine", name=name, uuid=machine.vm.uuid)
            self._domains.define(machine)
            with tx.commit() as change:
                still_free(change, name, self._node)
                change.edit(VmRecord, name, node=self._node)


def disk_words(number: int, size: int) -> str:
    """How `unfinished` speaks of a disk."""
    return f"disk {number} ({format_size(size)})"


def network_words(network: str) -> str:
    """How `unfinished` speaks of an adapter."""
    return f"a network adapter on '{network}'"


def finish(edit: Callable[..., VmRecord], vm: VmRecord | None, *words: str) -> None:
    """Take the first of *words* that is there off the list of what the machine was to have and has not."""
    left = list(vm.unfinished) if vm is not None else []
    found = next((each for each in words if each in left), None)
    if vm is not None and found is not None:
        left.remove(found)
        edit(VmRecord, vm.name, unfinished=tuple(left))


def new_mac(store: Store) -> str:
    """An address that no adapter of the cluster has."""
    taken = {mac for vm in store.all(VmRecord).values() for mac in vm.adapters}
    mac = names.new_mac_address()
    while mac in taken:
        mac = names.new_mac_address()
    return mac


def _machine_for(disks: tuple[DiskSpec, ...]) -> Machine:
    # q35 has no IDE. Who asks for it has a guest that needs the older machine.
    return Machine.PC if any(disk.driver is DiskDriver.IDE for disk in disks) else Machine.Q35
