"""Deleting virtual machines.

There is no way back from the first deleted disk: what a crash interrupts is finished, not undone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from mcvirt.errors import Conflict, VmProtected, VmRunning
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import DiskRecord, VmRecord
from mcvirtd.state.store import Change
from mcvirtd.tasks.task import step
from mcvirtd.vm import checks
from mcvirtd.vm.design import disks_of
from mcvirtd.vm.ground import Ground
from mcvirtd.vm.unsettled import disks_rest, settled


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
        ground.journal.register("vm.finish_delete", self._finish_after_crash)

    def check(self, name: str, *, keep_disks: bool) -> VmRecord:
        """Raise all that stands against deleting the machine."""
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

    def carry_out(self, name: str, *, keep_disks: bool, keep_config: bool) -> None:
        """Delete the machine. A failure leaves it with the disks that are still there; deleting again goes on."""
        with self._journal.transaction() as tx:
            tx.redo(
                "vm.finish_delete",
                name=name,
                revision=self._revision_of(name),
                keep_disks=keep_disks,
                keep_config=keep_config,
            )
            self._finish(name, keep_disks, keep_config)
            tx.keep()

    def remove(self, name: str) -> None:
        """Take away a machine that was just being made."""
        self._finish(name, keep_disks=False, keep_config=False)

    def _finish_after_crash(self, name: str, revision: int, keep_disks: bool, keep_config: bool) -> None:
        with self._locks.hold(f"vm:{name}"):
            # Where libvirt was away at the start, that may be later: who has used the machine since wants to keep it.
            if self._revision_of(name) == revision:
                self._finish(name, keep_disks, keep_config)

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
                if keep_disks:
                    change.edit(DiskRecord, disk.id, vm=None, slot=None)
                else:
                    self._disks.drop(change, disk.id)
        with self._store.change() as change:
            if keep_config:
                change.edit(VmRecord, name, node=None, iso=None, boot_iso=False)
            else:
                change.delete(VmRecord, name)
                self._drop_grants(change, name)
        with contextlib.suppress(OSError):
            Path(self._designs.console_log(vm)).unlink()
