"""Giving up hard drives that no machine of this node uses any more: a replicated one is then no longer Primary here.

Only who starts a machine, or gives a running one a disk, makes a disk ready. Giving it up goes by what is there: the
domain that is not active, however it ended. So it is done by whoever stops a machine, when libvirt says that a guest
has ended by itself, as the undoing of a start that failed, and now and then for what nobody has heard of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mcvirt.errors import LibvirtUnreachable, McvirtError
from mcvirtd.hypervisor.states import DomainState
from mcvirtd.hypervisor.verbs import HypervisorVerbs
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.disks import Disks
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.transaction import Journal
from mcvirtd.vm.design import disks_of

log = logging.getLogger(__name__)
RELEASE_VM, RELEASE_DISK = "vm.release_disks", "disk.release"
_AT_ONCE = 8
_PATIENCE = 60.0


class Release:
    """*held* lists the hard drives that this node is Primary for. `watch` begins to listen to libvirt."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        locks: Locks,
        hypervisor: HypervisorVerbs,
        disks: Disks,
        node: str,
        held: Callable[[], Sequence[str]],
    ) -> None:
        self._store = store
        self._locks = locks
        self._hypervisor = hypervisor
        self._disks = disks
        self._node = node
        self._held = held
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="release")
        journal.register(RELEASE_VM, self.of_machine)
        journal.register(RELEASE_DISK, self.of_disk)

    def watch(self) -> None:
        """Give up the disks of guests that end from now on."""
        self._hypervisor.subscribe(self._on_state)

    def of_machine(self, name: str) -> None:
        """Give up the disks of the machine, unless there is a guest here that has them."""
        with self._locks.hold(f"vm:{name}", within=_PATIENCE):
            vm = self._store.get(VmRecord, name)
            if vm is not None and not self._active(vm):
                for disk in disks_of(self._store, name):
                    self._disks.deactivate(disk)

    def of_disk(self, disk: str) -> None:
        """Give up the disk, unless its machine has a guest here."""
        record = self._store.get(DiskRecord, disk)
        if record is None:
            return
        if record.vm is not None:
            self.of_machine(record.vm)
            return
        with self._locks.hold(f"disk:{disk}", within=_PATIENCE):
            now = self._store.get(DiskRecord, disk)
            if now is not None and now.vm is None:
                self._disks.deactivate(now)

    def settle(self) -> None:
        """Give up what is held for nobody; for a timer."""
        if not self._hypervisor.connected:
            return
        for disk in self._held():
            record = self._store.get(DiskRecord, disk)
            vm = self._store.get(VmRecord, record.vm) if record is not None and record.vm else None
            name = f"vm:{vm.name}" if vm is not None else f"disk:{disk}"
            if (vm is None or not self._active(vm)) and self._locks.holder(name) is None:
                self._try(self.of_disk, disk)

    def _active(self, vm: VmRecord) -> bool:
        if not self._hypervisor.connected:
            raise LibvirtUnreachable(node=self._node, uri="its socket", reason="so whether a guest runs is not known.")
        state = self._hypervisor.state(vm.uuid)
        return state is not None and state.active

    def _on_state(self, uuid: str, state: DomainState | None) -> None:
        if state is not None and state.active:
            return
        held = set(self._held())
        for disk in self._store.all(DiskRecord).values() if held else ():
            vm = self._store.get(VmRecord, disk.vm) if disk.vm and disk.id in held else None
            if vm is not None and vm.uuid == uuid:
                # The kernel, and whoever works at the machine now, are not waited for in libvirt's thread.
                self._pool.submit(self._try, self.of_machine, vm.name)
                return

    @staticmethod
    def _try(release: Callable[[str], None], what: str) -> None:
        try:
            release(what)
        except McvirtError as error:
            log.warning("what %s held is given up later: %s", what, error)
        except Exception:
            log.exception("what %s held is given up later", what)
