"""The contract of virtual machines, done."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mcvirt import names
from mcvirt.api.vm import VmApi
from mcvirt.errors import Conflict, VmNotFound, VmStopped
from mcvirt.types.vm import (
    ConsoleChunk,
    GraphicsDriver,
    LockState,
    VmChange,
    VmInfo,
    VmRow,
    VmSpec,
    VncInfo,
)
from mcvirtd.auth.caller import current_caller
from mcvirtd.hypervisor.verbs import HypervisorVerbs
from mcvirtd.state.records import VmRecord
from mcvirtd.state.store import Store
from mcvirtd.tasks.locks import Locks
from mcvirtd.vm import checks
from mcvirtd.vm.change import Changes
from mcvirtd.vm.consoles import Consoles, read_log
from mcvirtd.vm.creation import Creation
from mcvirtd.vm.deletion import Deletion
from mcvirtd.vm.design import Designer
from mcvirtd.vm.domains import Domains
from mcvirtd.vm.failover import Failover
from mcvirtd.vm.power import Power
from mcvirtd.vm.registration import Registration
from mcvirtd.vm.view import View


class VmService(VmApi):
    """Takes the locks and hands on; each area has a class of its own."""

    def __init__(
        self,
        *,
        store: Store,
        locks: Locks,
        hypervisor: HypervisorVerbs,
        domains: Domains,
        designs: Designer,
        creation: Creation,
        changes: Changes,
        power: Power,
        deletion: Deletion,
        view: View,
        consoles: Consoles,
        failover: Failover,
        registration: Registration,
        node: str,
    ) -> None:
        self._store = store
        self._locks = locks
        self._hypervisor = hypervisor
        self._domains = domains
        self._designs = designs
        self._creation = creation
        self._changes = changes
        self._power = power
        self._deletion = deletion
        self._view = view
        self._consoles = consoles
        self._failover = failover
        self._registration = registration
        self._node = node

    def list(self) -> tuple[VmRow, ...]:
        return tuple(self._view.rows())

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._store.all(VmRecord)))

    def info(self, name: str) -> VmInfo:
        return self._view.info(self._domains.machine(name))

    def create(self, spec: VmSpec) -> VmInfo:
        with self._locks.hold(f"vm:{spec.name}"):
            self._creation.carry_out(self._creation.plan(spec))
            return self.info(spec.name)

    def delete(self, name: str, keep_disks: bool = False, keep_config: bool = False) -> None:
        with self._locks.hold(f"vm:{name}"):
            vm = self._deletion.check(name, keep_disks=keep_disks)
            self._deletion.carry_out(vm, keep_disks=keep_disks, keep_config=keep_config)

    def start(self, name: str, iso: str | None = None) -> None:
        image = names.iso_name(iso) if iso else None
        with self._locks.hold(f"vm:{name}", *_lock_of(image)):
            self._power.start(name, image)

    def stop(self, name: str) -> None:
        with self._locks.hold(f"vm:{name}"):
            self._power.stop(name)

    def reset(self, name: str) -> None:
        with self._locks.hold(f"vm:{name}"):
            self._power.reset(name)

    def shutdown(self, name: str, wait: int | None = None) -> None:
        with self._locks.hold(f"vm:{name}"):
            self._power.shutdown(name)
        # The guest takes its time, and meanwhile `stop` must be possible: nothing is held.
        if wait is not None:
            self._power.wait_until_off(name, wait)

    def register(self, name: str) -> None:
        with self._locks.hold(f"vm:{name}"):
            self._registration.carry_out(name)

    def unregister(self, name: str) -> None:
        with self._locks.hold(f"vm:{name}"):
            self._power.unregister(name)

    def failover(self, name: str, owner_is_off: str | None = None, start: bool = False) -> VmInfo:
        with self._locks.hold(f"vm:{name}"):
            self._failover.carry_out(name, owner_is_off, start=start)
            return self.info(name)

    def update(self, name: str, change: VmChange) -> VmInfo:
        if change.iso:
            change = msgspec.structs.replace(change, iso=names.iso_name(change.iso))
        with self._locks.hold(f"vm:{name}", *_lock_of(change.iso)):
            self._changes.carry_out(self._changes.plan(name, change))
            return self.info(name)

    def lock_state(self, name: str) -> LockState:
        return LockState.LOCKED if self._record(name).locked else LockState.UNLOCKED

    def set_lock(self, name: str, locked: bool) -> None:
        with self._store.change() as change:
            vm = change.get(VmRecord, name)
            if vm is None:
                raise VmNotFound(name=name)
            if vm.locked == locked:
                raise Conflict(text=f"Virtual machine '{name}' is {'locked' if locked else 'unlocked'} already.")
            change.edit(VmRecord, name, locked=locked)

    def vnc(self, name: str) -> VncInfo:
        vm = self._running(name)
        if vm.graphics_driver is GraphicsDriver.NONE:
            raise Conflict(text=f"Virtual machine '{name}' has no display: its graphics driver is 'none'.")
        port = self._hypervisor.vnc_port(vm.uuid)
        if port is None:
            raise VmStopped(name=name)
        return VncInfo(node=self._node, host="127.0.0.1", port=port, password=vm.vnc_password)

    def console_log(self, name: str, tail: int = 65536) -> ConsoleChunk:
        vm = self._record(name)
        return ConsoleChunk(data=read_log(Path(self._designs.console_log(vm)), tail), open=self._domains.is_active(vm))

    def console_open(self, name: str) -> str:
        return self._consoles.open(name, self._running(name).uuid, current_caller().user)

    def console_read(self, name: str, console: str, wait: float = 10.0) -> ConsoleChunk:
        return self._consoles.read(name, console, current_caller().user, wait)

    def console_write(self, name: str, console: str, data: bytes) -> None:
        self._consoles.write(name, console, current_caller().user, data)

    def console_close(self, name: str, console: str) -> None:
        self._consoles.close(name, console, current_caller().user)

    def _record(self, name: str) -> VmRecord:
        return self._domains.machine(name).vm

    def _running(self, name: str) -> VmRecord:
        vm = self._record(name)
        checks.registered_here(vm, self._node)
        if not self._domains.is_active(vm):
            raise VmStopped(name=name)
        return vm


def _lock_of(image: str | None) -> tuple[str, ...]:
    """The lock that keeps an image from being deleted while it is put into a drive."""
    return (f"iso:{image}",) if image else ()
