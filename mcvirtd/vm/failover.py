"""Taking over machines of a node that is gone, and giving up what is left here of machines that others took over."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from mcvirt.errors import (
    BadArgument,
    Conflict,
    McvirtError,
    NotFound,
    OwnerAlive,
    OwnerUnconfirmed,
    TakenOverOnly,
    UnsuitableNode,
    VmNotFound,
    VmNotRegistered,
    VmRegistered,
)
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.tasks.task import step
from mcvirtd.vm import arrived, checks, unsettled
from mcvirtd.vm.design import Machine
from mcvirtd.vm.elsewhere import Nodes, runs_elsewhere
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.power import Power
from mcvirtd.vm.unsettled import settled

log = logging.getLogger(__name__)


class Failover:
    """Makes this node the one of a machine whose node is gone. Callers hold the machine's lock.

    A machine whose guest runs here already, for it came in a migration that was not settled, goes on running.
    """

    def __init__(self, ground: Ground, power: Power, nodes: Nodes) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._hypervisor = ground.hypervisor
        self._domains = ground.domains
        self._designs = ground.designs
        self._disks = ground.disks
        self._node = ground.node
        self._power = power
        self._nodes = nodes

    def carry_out(self, name: str, owner_is_off: str | None, *, start: bool) -> None:
        """Take the machine over; everything is checked before anything is done."""
        machine = self._plan(name, owner_is_off)
        self._take_over(machine)
        if start and not self._domains.is_active(machine.vm):
            try:
                self._power.start(name, None)
            except McvirtError as error:
                raise TakenOverOnly(name=name, node=self._node, reason=str(error)) from error

    def _plan(self, name: str, owner_is_off: str | None) -> Machine:
        machine = self._domains.machine(name)
        vm = machine.vm
        if vm.node is None:
            raise VmNotRegistered(name=name)
        if vm.node == self._node:
            raise VmRegistered(name=name, node=self._node)
        if owner_is_off is not None and owner_is_off != vm.node:
            raise BadArgument(
                what=f"node '{owner_is_off}'", why=f"it is on node '{vm.node}' that '{name}' is registered."
            )
        with step(f"Asking who reaches node {vm.node}"):
            witness = self._nodes.witness(vm.node)
        if witness:
            raise OwnerAlive(name=name, node=vm.node, witness=witness)
        machine = self._check_here(machine)
        if owner_is_off is None:
            raise OwnerUnconfirmed(name=name, node=vm.node)
        self._nodes.require_leader()
        return self._with_what_is_here(machine)

    def _check_here(self, machine: Machine) -> Machine:
        """The machine as it is to be here, where nothing stands against that."""
        vm = machine.vm
        self._domains.require_libvirt()
        reasons = Reasons()
        copied = arrived.copied_here(self._journal, machine)
        come = arrived.has_come(self._hypervisor.state(vm.uuid))
        there = arrived.at_home(machine, copied if come else frozenset(), self._node)
        with reasons.gather():
            checks.unlocked(vm)
        with reasons.gather():
            settled(self._journal, vm.name, went=vm)
        if self._node not in there.vm.nodes:
            reasons.add(UnsuitableNode(name=vm.name, node=self._node, nodes=", ".join(vm.nodes)))
        for disk in there.disks:
            # What came with the guest is the disk, and the only one.
            came = come and disk.id in copied
            problem = self._disks.available(disk) if came else self._disks.takes_over(disk)
            if problem and not came and disk.id in copied:
                problem += (
                    f" It was being copied to node '{self._node}' when node '{vm.node}' was lost, and the guest has "
                    "not gone over: what is here may lack some of it. It is kept until that node is back."
                )
            if problem:
                reasons.add(Conflict(text=f"Hard drive {disk.id} (disk {disk.slot}) can't be taken over: {problem}"))
        self._power.check_networks(vm, reasons)
        with step("Asking the other nodes whether it runs there"):
            for node in runs_elsewhere(self._nodes, vm, reasons):
                reasons.add(
                    Conflict(
                        text=f"Virtual machine '{vm.name}' runs on node '{node}', and can be taken over only there, "
                        f"with `mcvirt failover {vm.name} --yes-node-is-off {vm.node}`."
                    )
                )
        for uuid, state in self._hypervisor.domains().items():
            if uuid == vm.uuid and state.active and not state.running:
                text = f"Virtual machine '{vm.name}' is on node '{self._node}', and its guest stands still."
                if come or not copied:  # else it may have come without all of its disks
                    text += (
                        f" End it with `virsh destroy {vm.name}` there, or let it go on with `virsh resume {vm.name}`."
                    )
                reasons.add(Conflict(text=text))
            elif uuid != vm.uuid and state.name == vm.name:
                reasons.add(Conflict(text=f"libvirt on node '{self._node}' has another domain called '{vm.name}'."))
        reasons.raise_all()
        return there

    def _with_what_is_here(self, machine: Machine) -> Machine:
        try:
            self._designs.iso_path(machine.vm)
        except NotFound:
            return msgspec.structs.replace(machine, vm=msgspec.structs.replace(machine.vm, iso=None, boot_iso=False))
        return machine

    def _take_over(self, machine: Machine) -> None:
        vm = machine.vm
        log.warning("virtual machine %s is taken over from node %s", vm.name, vm.node)
        with step(f"Taking it over from node {vm.node}"), self._journal.transaction() as tx:
            state = self._hypervisor.state(vm.uuid)
            if state is None or not (state.active and state.persistent):
                tx.undo("vm.undefine", name=vm.name, uuid=vm.uuid)
            self._domains.define(machine)
            with tx.commit() as change:
                now = change.get(VmRecord, vm.name)
                if now is None:
                    raise VmNotFound(name=vm.name)
                if now.node != vm.node:
                    raise Conflict(text=f"Virtual machine '{vm.name}' was given to another node meanwhile.")
                for disk in machine.disks:
                    before = change.get(DiskRecord, disk.id)
                    if before is None:
                        raise Conflict(text=f"Hard drive {disk.id} was deleted meanwhile.")
                    if before.nodes != disk.nodes:
                        change.edit(DiskRecord, disk.id, nodes=disk.nodes)
                # A deletion that its node has begun is over with it: who takes the machine over wants it.
                change.edit(
                    VmRecord,
                    vm.name,
                    node=self._node,
                    nodes=now.nodes if self._node in now.nodes else vm.nodes,
                    iso=vm.iso,
                    boot_iso=vm.boot_iso,
                    deleter="",
                )
        arrived.forget(self._journal, machine)
        unsettled.forget(self._journal, vm)  # the node that it went to was to start it, perhaps, and is off


class Strays:
    """Domains that this node has of machines that are registered on another by now.

    A stopped one is undefined. One that runs is left alone, whatever that means for its disks: it is told, in the log,
    the audit trail (*tell*) and with `mcvirt info`, until somebody has stopped it. *sure* says whether the records are
    the cluster's, and *expected* whether a machine is just being migrated to this node. Whoever defines here a machine
    of another node otherwise holds its lock until the records say so.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        sure: Callable[[], bool],
        tell: Callable[[str, McvirtError | None], None] = lambda name, error: None,  # noqa: ARG005
        expected: Callable[[str], bool] = lambda name: False,  # noqa: ARG005
    ) -> None:
        self._expected = expected
        self._store = ground.store
        self._locks = ground.locks
        self._hypervisor = ground.hypervisor
        self._node = ground.node
        self._sure = sure
        self._tell = tell
        self._running: dict[str, str] = {}

    def settle(self) -> None:
        """Look for them; for a timer."""
        if not self._hypervisor.connected or not self._sure():
            return
        here = self._hypervisor.domains()
        found = [vm.name for vm in self._store.all(VmRecord).values() if vm.uuid in here and self._is_stray(vm)]
        running: dict[str, str] = {}
        for name in found:
            try:
                with self._locks.hold(f"vm:{name}", within=0):
                    owner = self._settle_one(name)
            except McvirtError as error:
                log.info("the stray domain of %s is looked at again later: %s", name, error)
                owner = self._running.get(name, "")
            if owner:
                running[name] = owner
        self._running = running

    def _is_stray(self, vm: VmRecord) -> bool:
        return vm.node is not None and vm.node != self._node and not self._expected(vm.name)

    def _settle_one(self, name: str) -> str:
        """The node that the machine is registered on, if it runs here as well."""
        vm = self._store.get(VmRecord, name)
        state = self._hypervisor.state(vm.uuid) if vm is not None else None
        if vm is None or state is None or not self._is_stray(vm):
            return ""
        if state.active:
            if name not in self._running:
                error = Conflict(text=self._sentence(name, vm.node or ""))
                log.error("%s", error)
                self._tell(name, error)
            return vm.node or ""
        self._hypervisor.undefine(vm.uuid)
        log.warning("virtual machine %s is on node %s by now: its domain here was undefined", name, vm.node)
        self._tell(name, None)
        return ""

    def _sentence(self, name: str, owner: str) -> str:
        return (
            f"Virtual machine '{name}' runs here, although node '{owner}' has taken it over. If it runs there, too, "
            f"both write to its disks. Turn one of them off at once: `virsh destroy {name}` does that here, "
            f"`mcvirt stop {name}` there."
        )

    def warnings(self) -> tuple[str, ...]:
        """What operators must know."""
        return tuple(self._sentence(name, owner) for name, owner in sorted(self._running.items()))
