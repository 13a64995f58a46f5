"""Starting, stopping, resetting, unregistering."""

from __future__ import annotations

import logging
import time

import msgspec

from mcvirt.errors import (
    Conflict,
    DeadlinePassed,
    McvirtError,
    VmAlreadyRunning,
    VmNotRegistered,
    VmPaused,
    VmRunning,
    VmStopped,
)
from mcvirt.types.vm import PowerState
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import VmRecord
from mcvirtd.tasks.task import current_task, step
from mcvirtd.vm import checks
from mcvirtd.vm.design import Machine
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.release import RELEASE_VM
from mcvirtd.vm.unsettled import settled

log = logging.getLogger(__name__)

# How long a cancellation may go unheard while a guest is waited for.
_SLICE = 0.5


class Power:
    """The power button and the reset button, and where a machine is registered. Callers hold the machine's lock."""

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
        self._bridge_problem = ground.bridge_problem
        ground.journal.register("vm.finish_unregister", self._finish_unregister)

    def start(self, name: str, iso: str | None) -> None:
        """Start the machine from its disk, or from *iso*."""
        machine = self._domains.machine(name)
        wanted = Machine(vm=msgspec.structs.replace(machine.vm, iso=iso, boot_iso=bool(iso)), disks=machine.disks)
        self._check_start(wanted)
        with self._journal.transaction() as tx:
            tx.undo(RELEASE_VM, name=name)
            tx.undo("vm.align", name=name)
            with step("Making the disks ready"):
                for disk in machine.disks:
                    self._disks.activate(disk)
            with step("Defining the domain"):
                self._domains.define(wanted)
            with step("Starting"):
                started = self._hypervisor.start(machine.vm.uuid)
                if not started:
                    raise VmAlreadyRunning(name=name)
            # A deletion that a crash interrupted may not be finished yet: who starts the machine does not want it.
            self._journal.withdraw("vm.finish_delete", name=name)
            if wanted.vm == machine.vm and not machine.vm.deleter:
                # Nothing to tell the other nodes: a start must not depend on any of them.
                tx.keep()
            else:
                with tx.commit() as change:
                    change.edit(VmRecord, name, iso=iso, boot_iso=bool(iso), deleter="")

    def _check_start(self, machine: Machine) -> None:
        vm = machine.vm
        reasons = Reasons()
        with reasons.gather():
            checks.registered_here(vm, self._node)
            if self._domains.is_active(vm):
                paused = self._domains.power_state(vm) is PowerState.PAUSED
                raise (VmPaused if paused else VmAlreadyRunning)(name=vm.name)
        with reasons.gather():
            checks.unlocked(vm)
        with reasons.gather():
            settled(self._journal, vm.name)
        self.check_parts(machine, reasons)
        with reasons.gather():
            self._designs.iso_path(vm)
        reasons.raise_all()

    def check_parts(self, machine: Machine, reasons: Reasons) -> None:
        """All that the machine stands on is there on this node."""
        for disk in machine.disks:
            problem = self._disks.available(disk)
            if problem:
                reasons.add(Conflict(text=f"Hard drive {disk.id} (disk {disk.slot}) can't be used: {problem}"))
        self.check_networks(machine.vm, reasons)

    def check_networks(self, vm: VmRecord, reasons: Reasons) -> None:
        """The networks of the machine's adapters are there on this node."""
        for network in dict.fromkeys(vm.adapters.values()):
            with reasons.gather():
                checks.network(self._store, network, self._bridge_problem)

    def _active(self, name: str) -> VmRecord:
        vm = self._domains.machine(name).vm
        checks.registered_here(vm, self._node)
        if not self._domains.is_active(vm):
            raise VmStopped(name=name)
        return vm

    def stop(self, name: str) -> None:
        """Off, at once."""
        vm = self._active(name)
        with step("Turning the machine off"):
            if not self._hypervisor.destroy(vm.uuid):
                raise VmStopped(name=name)
        self._give_up_disks(name)

    def _give_up_disks(self, name: str) -> None:
        try:
            self._release.of_machine(name)
        except McvirtError as error:
            # The machine is off, as was asked for; a timer tries again.
            log.warning("the disks of %s are given up later: %s", name, error)

    def reset(self, name: str) -> None:
        """The reset button."""
        vm = self._active(name)
        checks.unlocked(vm)
        with step("Resetting"):
            self._hypervisor.reset(vm.uuid)

    def shutdown(self, name: str) -> None:
        """The power button; does not wait."""
        vm = self._active(name)
        with step("Pressing the power button"):
            if not self._hypervisor.shutdown(vm.uuid):
                raise VmStopped(name=name)

    def wait_until_off(self, name: str, within: int) -> None:
        """Return when the machine is off; needs no lock."""
        uuid = self._domains.machine(name).vm.uuid
        deadline = time.monotonic() + within
        with step("Waiting for the guest to shut down"):
            while not self._hypervisor.wait_for(uuid, _is_off, min(_SLICE, max(0.0, deadline - time.monotonic()))):
                current_task().check()
                if time.monotonic() >= deadline:
                    raise DeadlinePassed(
                        what=f"The end of virtual machine '{name}'",
                        seconds=within,
                        why=f"its guest has not shut down. `mcvirt stop {name}` turns it off.",
                    )

    def unregister(self, name: str) -> None:
        """Take the stopped machine out of libvirt."""
        vm = self._domains.machine(name).vm
        reasons = Reasons()
        if vm.node is None:
            reasons.add(VmNotRegistered(name=name))
        with reasons.gather():
            checks.unlocked(vm)
            if vm.node is not None and self._domains.is_active(vm):
                raise VmRunning(name=name)
        with reasons.gather():
            settled(self._journal, name)
        reasons.raise_all()
        with self._journal.transaction() as tx:
            tx.redo("vm.finish_unregister", name=name)
            with step("Taking the machine out of libvirt"):
                self._hypervisor.undefine(vm.uuid)
                self._release.of_machine(name)
            with tx.commit() as change:
                change.edit(VmRecord, name, node=None)

    def _finish_unregister(self, name: str) -> None:
        with self._locks.hold(f"vm:{name}"):
            vm = self._store.get(VmRecord, name)
            if vm is None or vm.node != self._node or self._domains.is_active(vm):
                return  # somebody uses it again
            self._hypervisor.undefine(vm.uuid)
            self._release.of_machine(name)
            with self._store.change() as change:
                change.edit(VmRecord, name, node=None)


def _is_off(state: DomainState | None) -> bool:
    return state is None or not state.active
