"""Hard drives as objects of their own."""

from __future__ import annotations

from typing import Protocol

from mcvirt import names
from mcvirt.api.storage import HardDriveApi
from mcvirt.errors import BackendUnavailable, Conflict, DiskInUse, NodeUnreachable, VmNotFound
from mcvirt.types.storage import DiskInfo
from mcvirt.types.vm import DiskDriver, DiskSpec
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import BackendRecord, DiskRecord, VmRecord
from mcvirtd.state.store import Change, Store
from mcvirtd.storage.disks import Disks
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import step
from mcvirtd.tasks.transaction import Journal, Transaction


class Attachments(Protocol):
    """What virtual machines do about their disks. The caller holds the locks of the disk and of the machine."""

    def check_attach(self, name: str, disk: DiskRecord | None = None) -> None:
        """Raise all that stands against one more disk for the machine *name*, or against that disk."""

    def attach(self, disk_id: str, name: str) -> None:
        """Attach a detached disk."""

    def attach_new(self, tx: Transaction, disk: DiskRecord, name: str) -> DiskRecord:
        """Give the machine a disk of which the record is not stored yet; the record returned is to be committed."""

    def commit_attached(self, change: Change, disk: DiskRecord) -> None:
        """In the change that stores the record of a disk just attached: what that means for its machine."""

    def detach(self, disk_id: str) -> None:
        """Detach a disk from its machine."""


class HardDriveService(HardDriveApi):
    """Hard drives, made and deleted on *node*."""

    def __init__(
        self, *, store: Store, journal: Journal, locks: Locks, disks: Disks, attachments: Attachments, node: str
    ) -> None:
        self._store = store
        self._journal = journal
        self._locks = locks
        self._disks = disks
        self._attachments = attachments
        self._node = node

    def list(self) -> tuple[DiskInfo, ...]:
        disks = sorted(self._store.all(DiskRecord).values(), key=lambda disk: (disk.vm or "", disk.slot or 0, disk.id))
        return tuple(self._info(disk) for disk in disks)

    def create(self, spec: DiskSpec, vm: str | None = None) -> DiskInfo:
        with self._locks.hold(*([] if vm is None else [f"vm:{vm}"])):
            reasons = Reasons()
            taken: tuple[DiskRecord, ...] = ()
            nodes: tuple[str, ...] = ()
            if vm is not None:
                with reasons.gather():
                    taken = self._disks_of(vm)
                    nodes = self._pair_of(vm)
                    self._attachments.check_attach(vm)
            with reasons.gather():
                (plan,) = self._disks.plan([spec], node=self._node, taken=taken, nodes=nodes)
            reasons.raise_all()
            with self._journal.transaction() as tx:
                record = self._disks.create(tx, plan)
                record = self._attached(tx, record, vm)
                with tx.commit() as change:
                    self._disks.put(change, record)
                    self._attachments.commit_attached(change, record)
            return self._info(record)

    def attach(self, disk: str, vm: str) -> DiskInfo:
        with self._locks.hold(f"disk:{disk}", f"vm:{vm}"):
            record = self._disks.find(disk)
            self._disks_of(vm)
            if record.vm is not None:
                raise DiskInUse(disk=disk, vm=record.vm)
            self._attachments.attach(disk, vm)
            return self._info(self._disks.find(disk))

    def detach(self, disk: str) -> DiskInfo:
        vm = self._disks.find(disk).vm
        with self._locks.hold(f"disk:{disk}", *([] if vm is None else [f"vm:{vm}"])):
            record = self._disks.find(disk)
            if record.vm is None:
                raise Conflict(text=f"Hard drive {disk} is not attached to a virtual machine.")
            if record.vm != vm:
                raise Conflict(text=f"Hard drive {disk} was attached to virtual machine '{record.vm}' meanwhile.")
            self._attachments.detach(disk)
            return self._info(self._disks.find(disk))

    def import_volume(
        self, volume: str, backend: str, vm: str | None = None, driver: DiskDriver | None = None
    ) -> DiskInfo:
        with self._locks.hold(*([] if vm is None else [f"vm:{vm}"])):
            reasons = Reasons()
            taken: tuple[DiskRecord, ...] = ()
            if vm is not None:
                with reasons.gather():
                    taken = self._disks_of(vm)
                    self._attachments.check_attach(vm)
            with reasons.gather(), step(f"Looking at volume {names.printable(volume)}"):
                record = self._disks.adopt(volume, backend, driver)
                self._disks.check_fits(record, taken)
            reasons.raise_all()
            with self._journal.transaction() as tx:
                record = self._attached(tx, record, vm)
                with tx.commit() as change:
                    self._disks.check_adopted(record, change)
                    change.put(record)
                    self._attachments.commit_attached(change, record)
            return self._info(record)

    def delete(self, disk: str, forget: bool = False) -> None:
        with self._locks.hold(f"disk:{disk}"):
            record = self._disks.find(disk)
            if record.vm is not None:
                raise DiskInUse(disk=disk, vm=record.vm)
            if forget:
                self._disks.forget(record)
                return
            reasons = Reasons()
            with reasons.gather():
                try:
                    self._disks.check_delete(record)
                except (BackendUnavailable, NodeUnreachable) as error:
                    hint = f"If it is gone for good, `mcvirt hard-drive delete {disk} --forget` forgets the hard drive."
                    raise type(error)(**{**error.fields, "reason": f"{error.fields['reason']} {hint}"}) from None
            with reasons.gather():
                self._disks.check_unused(record)
            reasons.raise_all()
            self._disks.finish_delete(disk)

    def _attached(self, tx: Transaction, record: DiskRecord, vm: str | None) -> DiskRecord:
        if vm is None:
            return record
        with step(f"Attaching it to {vm}"):
            return self._attachments.attach_new(tx, record, vm)

    def _disks_of(self, vm: str) -> tuple[DiskRecord, ...]:
        if self._store.get(VmRecord, vm) is None:
            raise VmNotFound(name=names.printable(vm))
        return tuple(disk for disk in self._store.all(DiskRecord).values() if disk.vm == vm)

    def _pair_of(self, vm: str) -> tuple[str, ...]:
        """The two nodes that the machine is to run on, if there are two."""
        record = self._store.get(VmRecord, vm)
        return record.nodes if record is not None and len(record.nodes) == 2 else ()

    def _info(self, disk: DiskRecord) -> DiskInfo:
        backend = self._store.get(BackendRecord, disk.backend)
        return DiskInfo(
            id=disk.id,
            size=disk.size,
            storage_type=disk.storage_type,
            backend=disk.backend,
            backend_id=backend.id if backend else "",
            volume=disk.volume,
            driver=disk.driver,
            nodes=disk.nodes,
            vm=disk.vm,
            slot=disk.slot,
            deleting=disk.deleting,
        )
