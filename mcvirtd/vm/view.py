"""Virtual machines as callers see them, answered from memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mcvirt.errors import McvirtError
from mcvirt.types.drbd import DrbdInfo
from mcvirt.types.vm import LockState, PowerState, VmAdapter, VmDisk, VmGroup, VmInfo, VmRow, VmUsage
from mcvirtd.cluster.live import Known
from mcvirtd.hypervisor.verbs import HypervisorVerbs
from mcvirtd.state.records import DiskRecord, GroupRecord, NodeRecord, UserRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.vm.design import AcceleratorOfNode, Machine
from mcvirtd.vm.domains import Domains

# A shorter time between two readings says little about the use of a processor.
_SHORTEST_SPAN = 0.5


class _Look(NamedTuple):
    state: PowerState
    missing: bool
    age: int | None


class View:
    """Builds the rows of `list` and the whole of `info`. *live* is what is known of another node than *node*.

    *replica* is what is known of both sides of a hard drive; None of one that is not replicated.
    """

    def __init__(
        self,
        *,
        store: Store,
        hypervisor: HypervisorVerbs,
        domains: Domains,
        accelerator: AcceleratorOfNode,
        node: str,
        live: Callable[[str], Known],
        replica: Callable[[DiskRecord], DrbdInfo | None] = lambda disk: None,  # noqa: ARG005
    ) -> None:
        self._replica = replica
        self._node = node
        self._live = live
        self._store = store
        self._hypervisor = hypervisor
        self._domains = domains
        self._accelerator = accelerator
        self._lock = threading.Lock()
        self._readings: dict[str, tuple[float, int, float | None]] = {}

    def rows(self) -> Sequence[VmRow]:
        """All machines, by name."""
        sizes: dict[str, int] = {}
        trouble: dict[str, list[str]] = {}
        for disk in self._store.all(DiskRecord).values():
            if disk.vm is None:
                continue
            sizes[disk.vm] = sizes.get(disk.vm, 0) + disk.size
            if disk.replica is not None and (replica := self._replica(disk)) is not None:
                trouble.setdefault(disk.vm, []).extend(replica.warnings())
        records = self._store.all(VmRecord)
        nodes = {vm.node for vm in records.values()} - {self._node, None}
        known = {node: self._live(node) for node in nodes if node is not None}
        looked = {name: self._look(records[name], known) for name in records}
        return [
            VmRow(
                name=name,
                state=looked[name].state,
                node=records[name].node,
                memory=records[name].memory,
                cpu_count=records[name].cpu_count,
                disk_size=sizes.get(name, 0),
                locked=records[name].locked,
                missing=looked[name].missing,
                age=looked[name].age,
                trouble=tuple(trouble.get(name, ())),
            )
            for name in sorted(records)
        ]

    def _look(self, vm: VmRecord, known: Mapping[str, Known]) -> _Look:
        """What a machine does: here as libvirt says, elsewhere as its node has said last."""
        if vm.node is None or vm.node == self._node:
            return _Look(self._domains.power_state(vm), self._domains.is_missing(vm), None)
        there = known[vm.node]
        state = there.states.get(vm.uuid)
        missing = state is None and there.info is not None and there.libvirt and not there.silent
        if state is None or not there.libvirt:
            return _Look(PowerState.UNKNOWN, missing, there.age)
        return _Look(state, False, there.age)

    def info(self, machine: Machine) -> VmInfo:
        """Everything about one machine; of one on another node, what is known here."""
        vm = machine.vm
        here = vm.node is None or vm.node == self._node
        known = Known() if here else self._live(vm.node or "")
        state, missing, _ = self._look(vm, {vm.node or "": known})
        return VmInfo(
            name=vm.name,
            id=vm.id,
            uuid=vm.uuid,
            state=state,
            node=vm.node,
            nodes=vm.nodes,
            memory=vm.memory,
            cpu_count=vm.cpu_count,
            machine=vm.machine,
            accelerator=self._accelerator.name() if here else known.info.accelerator if known.info else "unknown",
            graphics_driver=vm.graphics_driver,
            autostart=vm.autostart,
            lock=LockState.LOCKED if vm.locked else LockState.UNLOCKED,
            delete_protection=vm.delete_protection,
            autodeflate=vm.autodeflate,
            flags=vm.flags,
            iso=vm.iso,
            disks=tuple(
                VmDisk(
                    slot=disk.slot or 0,
                    id=disk.id,
                    size=disk.size,
                    storage_type=disk.storage_type,
                    backend=disk.backend,
                    driver=disk.driver,
                    replica=self._replica(disk),
                )
                for disk in machine.disks
            ),
            adapters=tuple(VmAdapter(mac=mac, network=network) for mac, network in vm.adapters.items()),
            groups=tuple(
                VmGroup(group=group.name, users=group.vm_users[vm.name])
                for group in self._store.all(GroupRecord).values()
                if group.vm_users.get(vm.name)
            ),
            permissions={
                user.name: user.vm_permissions[vm.name]
                for user in self._store.all(UserRecord).values()
                if user.vm_permissions.get(vm.name)
            },
            usage=self._usage(vm) if here and state is PowerState.RUNNING else None,
            missing=missing,
            restart_needed=here and state is PowerState.RUNNING and self._domains.restart_needed(machine),
            waiting=vm.waiting,
            last_migration=vm.last_migration,
            warnings=tuple(self._warnings(machine, missing, None if here else known)),
        )

    def _warnings(self, machine: Machine, missing: bool, elsewhere: Known | None) -> Sequence[str]:
        vm = machine.vm
        warnings = []
        if elsewhere is not None and elsewhere.age is not None:
            warnings.append(f"Node '{vm.node}' does not answer; the state is what it was {elsewhere.age} s ago.")
        elif elsewhere is not None and elsewhere.silent:
            warnings.append(f"Node '{vm.node}' does not answer, and has not since this node was started.")
        if missing:
            warnings.append(f"libvirt has lost the domain; `mcvirt start {vm.name}` defines it again.")
        elif elsewhere is None and vm.node is not None and not self._hypervisor.connected:
            warnings.append("libvirt on the machine's node does not answer, so its state is not known.")
        warnings += [
            f"It runs on node '{node}' as well, which had it before: one of them must be turned off at once "
            f"(`virsh destroy {vm.name}` on node '{node}')."
            for node in self._also_on(vm)
        ]
        if vm.node is None and vm.deleter:
            warnings.append(f"It is being deleted; `mcvirt delete {vm.name}` finishes a deletion that has failed.")
        elif vm.node is None:
            warnings.append(f"The machine is not registered on a node; `mcvirt register {vm.name}` does that.")
        if vm.waiting is not None:
            warnings.append(f"It is migrated to node '{vm.waiting.node}' as soon as its guest has shut down.")
        if vm.unfinished:
            missing_parts = ", ".join(vm.unfinished)
            warnings.append(
                f"Its creation was not finished. It was to have {missing_parts}; `mcvirt update` adds them."
            )
        if not machine.disks:
            warnings.append("The machine has no hard drives.")
        for disk in machine.disks:
            replica = self._replica(disk)
            if replica is not None:
                warnings += replica.warnings()
        if not vm.adapters:
            warnings.append("The machine has no network adapters.")
        return warnings

    def _also_on(self, vm: VmRecord) -> Sequence[str]:
        """The nodes that the machine runs on, besides the one that it is registered on."""
        found = []
        for node in sorted({self._node, *self._store.all(NodeRecord)} - {vm.node}):
            if node == self._node:
                state = self._hypervisor.state(vm.uuid)
                runs = state is not None and state.active
            else:
                there = self._live(node)
                runs = not there.silent and there.states.get(vm.uuid, PowerState.STOPPED) is not PowerState.STOPPED
            if runs and vm.node is not None:
                found.append(node)
        return found

    def _usage(self, vm: VmRecord) -> VmUsage | None:
        try:
            stats = self._hypervisor.stats(vm.uuid)
        except McvirtError:
            return None  # the state says already that libvirt is away
        if not (stats.cpu_time or stats.rss):
            return None  # the guest has just ended
        now = time.monotonic()
        with self._lock:
            then, cpu_time, percent = self._readings.get(vm.uuid, (0.0, 0, None))
            if then == 0.0 or stats.cpu_time < cpu_time:
                self._readings[vm.uuid] = (now, stats.cpu_time, None)
                percent = None
            elif now - then >= _SHORTEST_SPAN:
                percent = round((stats.cpu_time - cpu_time) / (now - then) / 1e7, 1)
                self._readings[vm.uuid] = (now, stats.cpu_time, percent)
            if len(self._readings) > 2 * len(self._store.all(VmRecord)) + 16:
                known = {record.uuid for record in self._store.all(VmRecord).values()}
                self._readings = {uuid: reading for uuid, reading in self._readings.items() if uuid in known}
        return VmUsage(cpu_percent=percent, memory=stats.rss)
