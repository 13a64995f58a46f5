"""Deleting virtual machines.

There is no way back from the first deleted disk: what a crash interrupts is finished, not undone. Before it the record
is marked, in a change that requires that the machine is where it was: one that is registered nowhere may be deleted on
one node and registered on another at the same moment, and neither has the other's locks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from mcvirt.errors import Conflict, McvirtError, VmNotFound, VmProtected, VmRunning
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Change
from mcvirtd.tasks.task import current_task, step
from mcvirtd.vm import checks
from mcvirtd.vm.design import disks_of
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import disks_rest, settled

log = logging.getLogger(__name__)

FINISH, UNMARK = "vm.finish_delete", "vm.undo_delete"


class Deletion:
    """*drop_grants* takes a machine's name out of users' and groups' records, in the change that deletes it."""

    def __init__(self, ground: Ground, drop_grants: Callable[[Change, str], None]) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._locks = ground.locks
        self._hypervisor = ground.hypervisor
        self._domains = ground.domains
        self._designs = ground.designs
        self._disks = ground.disks
        self._drop_grants = drop_grants
        ground.journal.register(FINISH, self._finish_after_crash)
        ground.journal.register(UNMARK, self._unmark)

    def check(self, name: str, *, keep_disks: bool) -> VmRecord:
        """The machine, of which nothing stands against deleting it; all that does is raised."""
        vm = self._domains.machine(name).vm
        reasons = Reasons()
        with reasons.gather():
            if vm.node is not None and self._domains.is_active(vm):
                raise VmRunning(name=name)
        with reasons.gather():
            checks.unlocked(vm)
        with reasons.gather():
            settled(self._journal, name)
        with reasons.gather():
            disks_rest(self._store, name)
        if vm.delete_protection:
            reasons.add(VmProtected(name=name))
        for disk in () if keep_disks else disks_of(self._store, name):
            with reasons.gather():
                self._disks.check_delete(disk)
        reasons.raise_all()
        return vm

    def carry_out(self, vm: VmRecord, *, keep_disks: bool, keep_config: bool) -> None:
        """Delete the machine. A failure leaves it with the disks that are still there; deleting again goes on."""
        how = {"name": vm.name, "keep_disks": keep_disks, "keep_config": keep_config}
        with self._journal.transaction() as tx:
            due = tx.redo(FINISH, **how, revision=None)
            with tx.change() as change:
                _mark(change, vm)
            # Nothing is deleted before this is written down.
            self._journal.amend(due, {**how, "revision": self._revision_of(vm.name)})
            with self._marked(vm.name):
                self._finish(vm.name, keep_disks, keep_config)
            tx.keep()

    def remove(self, name: str) -> None:
        """Take away a machine that was just being made."""
        vm = self._store.get(VmRecord, name)
        if vm is not None:
            with self._store.change() as change:
                _mark(change, vm)
            with self._marked(name):
                self._finish(name, keep_disks=False, keep_config=False)

    def _finish_after_crash(self, name: str, revision: int | None, keep_disks: bool, keep_config: bool) -> None:
        with self._locks.hold(f"vm:{name}"):
            with self._store.change() as change:  # in its turn, so that no mark is being stored that is not seen
                vm = change.get(VmRecord, name)
            if vm is None or vm.deleter != current_task().id:
                return
            # Where libvirt was away at the start, that may be later: who has used the machine since wants to keep it.
            if revision is not None and self._revision_of(name) == revision:
                self._finish(name, keep_disks, keep_config)
            else:
                self._unmark(name)
                current_task().conclude(f"Virtual machine '{name}' was not deleted.", done=False)

    @contextlib.contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        """What fails in the block leaves a machine that is there, for anybody to use."""
        try:
            yield
        except Exception:
            try:
                with current_task().shielded():
                    self._unmark(name)
            except McvirtError as error:
                log.warning("virtual machine %s stays marked as being deleted until that is settled: %s", name, error)
                self._journal.add(0, "undo", UNMARK, {"name": name})
            raise

    def _unmark(self, name: str) -> None:
        with self._store.change() as change:
            vm = change.get(VmRecord, name)
            if vm is not None and vm.deleter == current_task().id:  # else another node has begun to delete it
                change.edit(VmRecord, name, deleter="")

    def _revision_of(self, name: str) -> int:
        rows = self._store.query("SELECT revision FROM record WHERE kind = ? AND key = ?", (VmRecord.kind, name))
        return int(rows[0][0]) if rows else -1

    def _finish(self, name: str, keep_disks: bool, keep_config: bool) -> None:
        vm = self._store.get(VmRecord, name)
        if vm is None:
            return
        state = self._hypervisor.state(vm.uuid)
        if state is not None and state.active:
            raise Conflict(text=f"Virtual machine '{name}' was started while it was being deleted.")
        with step("Taking the machine out of libvirt"):
            if vm.node is not None or state is not None:
                self._hypervisor.undefine(vm.uuid)
        for disk in disks_of(self._store, name):
            if not keep_disks:
                with step(f"Deleting disk {disk.slot}"):
                    self._disks.begin_delete(disk)
                    self._disks.delete_volume(disk)
            with self._store.change() as change:
                _still_mine(change, name)
                if keep_disks:
                    change.edit(DiskRecord, disk.id, vm=None, slot=None)
                else:
                    self._disks.drop(change, disk.id)
        with self._store.change() as change:
            _still_mine(change, name)
            if keep_config:
                change.edit(VmRecord, name, node=None, iso=None, boot_iso=False, deleter="")
            else:
                change.delete(VmRecord, name)
                self._drop_grants(change, name)
        with contextlib.suppress(OSError):
            Path(self._designs.console_log(vm)).unlink()


def _mark(change: Change, vm: VmRecord) -> None:
    """In a change: the machine, which is where it was, is being deleted by the current task."""
    now = change.get(VmRecord, vm.name)
    if now is None or now.uuid != vm.uuid:
        raise VmNotFound(name=vm.name)
    if now.node != vm.node:
        where = f"registered on node '{now.node}'" if now.node is not None else "unregistered"
        raise Conflict(text=f"Virtual machine '{vm.name}' was {where} meanwhile.")
    change.edit(VmRecord, vm.name, deleter=current_task().id)


def _still_mine(change: Change, name: str) -> None:
    """In a change: nobody else has taken over what is being deleted here."""
    now = change.get(VmRecord, name)
    if now is None or now.deleter != current_task().id:
        raise Conflict(text=f"Virtual machine '{name}' is being deleted by another task, or is used again.")
