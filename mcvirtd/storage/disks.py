"""Hard drives as data: planned, made, grown, adopted and deleted. Which machine has one is not decided here."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import msgspec

from mcvirt import names
from mcvirt.errors import (
    BackendUnavailable,
    BadArgument,
    Conflict,
    DiskInUse,
    McvirtError,
    NotFound,
    TaskCancelled,
    VolumeUnusable,
)
from mcvirt.types.storage import VolumeFormat
from mcvirt.types.vm import DiskDriver, DiskSpec, StorageType
from mcvirt.units import SECTOR
from mcvirtd.state.records import BackendRecord, DiskRecord
from mcvirtd.state.store import Change, Store
from mcvirtd.storage import backends
from mcvirtd.storage.backends import DELETE_VOLUME, Nodes
from mcvirtd.storage.planning import DiskPlan, Planner, check_driver, check_size
from mcvirtd.storage.volumes import Volumes
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import current_task, step
from mcvirtd.tasks.transaction import Journal, Transaction

__all__ = ["DiskPlan", "DiskSource", "Disks"]

log = logging.getLogger(__name__)
FINISH_DELETE = "disk.finish_delete"


class DiskSource(msgspec.Struct, frozen=True, kw_only=True):
    """How a hypervisor opens a hard drive on this node; *direct*: past the page cache, which not all storage can."""

    path: str
    kind: Literal["file", "block"]
    format: Literal["raw", "qcow2"]
    direct: bool = True


class Disks:
    """The hard drives' volumes on this node. *used_paths* are those that any domain of libvirt's has."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        locks: Locks,
        nodes: Nodes,
        node: str,
        used_paths: Callable[[], Collection[str]],
        storage_types: Callable[[], Sequence[StorageType]] = lambda: (StorageType.LOCAL,),
    ) -> None:
        self._store = store
        self._journal = journal
        self._locks = locks
        self._nodes = nodes
        self._node = node
        self._used_paths = used_paths
        self._planner = Planner(store, nodes, storage_types)
        journal.register(DELETE_VOLUME, self._undo_create)
        journal.register(FINISH_DELETE, self._finish_after_crash)

    # --- checks: they change nothing --------------------------------------------------------------------------------

    def plan(self, specs: Sequence[DiskSpec], *, node: str, taken: Sequence[DiskRecord] = ()) -> tuple[DiskPlan, ...]:
        """What is to be made for *specs* on *node*, for a machine that has *taken*; raises all refusals together."""
        return self._planner.plan(specs, node=node, taken=taken)

    def check_fits(self, record: DiskRecord, taken: Sequence[DiskRecord]) -> None:
        """Raise if a machine that has the disks *taken* may not have this one as well."""
        self._planner.check_fits(record, taken)

    def check_grow(self, record: DiskRecord, new_size: int) -> None:
        """Raise all that stands against making the disk *new_size* bytes long."""
        check_size(new_size)
        if new_size <= record.size:
            raise BadArgument(what="new size", why="a hard drive can be made larger only.")
        problem = self.available(record)
        if problem:
            raise Conflict(text=f"Hard drive {record.id} can't be grown: {problem}")
        self._planner.check_space({record.backend: new_size - record.size}, self._home(record))

    def check_delete(self, record: DiskRecord) -> None:
        """Raise if the disk's volume can't be deleted now."""
        backend = backends.find(self._store, record.backend)
        node = self._home(record)
        reason = backends.problem(backend, node, self._nodes)
        if reason:
            raise BackendUnavailable(backend=backend.name, node=node, reason=reason)

    def check_unused(self, record: DiskRecord) -> None:
        """Raise Conflict if a domain of libvirt's has the disk's volume, whoever gave it to it."""
        self._refuse_used(self._volumes(record).path(record.volume), f"Hard drive {record.id}")

    def available(self, record: DiskRecord) -> str:
        """Why the disk can't be used on this node now, in a sentence; '' if it can."""
        try:
            backend = backends.find(self._store, record.backend)
            reason = backends.problem(backend, self._node, self._nodes)
            if reason:
                return f"storage backend '{backend.name}' is not available on node '{self._node}': {reason}"
            volumes = self._volumes(record)
            if not volumes.exists(record.volume):
                return f"its volume '{record.volume}' is missing in {volumes.location}."
        except McvirtError as error:
            return str(error)
        return ""

    def source(self, record: DiskRecord) -> DiskSource:
        """Where the hypervisor finds the disk, and how its volume is written; known before it exists."""
        volumes = self._volumes(record)
        path = volumes.path(record.volume)
        direct = volumes.kind == "block" or _takes_direct(path)
        return DiskSource(path=path, kind=volumes.kind, format=record.format.value, direct=direct)

    # --- acts -------------------------------------------------------------------------------------------------------

    def create(self, tx: Transaction, plan: DiskPlan) -> DiskRecord:
        """Make a planned disk; the record is for the caller to put into the change that commits *tx*."""
        with step(f"Creating hard drive {plan.id}", total=plan.size, unit="B") as progress:
            tx.undo(DELETE_VOLUME, backend=plan.backend, volume=plan.volume)
            # Read after the entry in the journal, which keeps the backend from being deleted from now on.
            volumes = self._nodes(plan.node).volumes(backends.find(self._store, plan.backend))
            try:
                size = volumes.create(
                    plan.volume,
                    plan.size,
                    progress=lambda done, _: progress.at(done),
                    cancel=current_task().cancelled,
                )
            except TaskCancelled:
                current_task().check()  # says who cancelled it
                raise
        return plan.record(size)

    def grow(self, record: DiskRecord, new_size: int) -> int:
        """Make the volume at least *new_size* long and return what it is then. The record is left to the caller."""
        return self._volumes(record).grow(record.volume, new_size, cancel=current_task().cancelled)

    def activate(self, record: DiskRecord) -> str:
        """Make the volume ready for use on this node; returns its path."""
        return self._volumes(record).activate(record.volume)

    def deactivate(self, record: DiskRecord) -> None:
        """Give up the volume on this node. Its data stays."""
        self._volumes(record).deactivate(record.volume)

    def delete_volume(self, record: DiskRecord) -> None:
        """Delete the disk's data; nothing happens if it is gone. The record is left to the caller."""
        self._volumes(record).delete(record.volume)

    def finish_delete(self, disk: str) -> None:
        """Delete a detached disk, data and record; a crash in the middle is finished at the next start."""
        # Who attaches it at this moment holds its lock, and may wait for a lock of ours: do not wait for each other.
        with self._locks.hold(f"disk:{disk}", within=0), self._journal.transaction() as tx:
            record = self.find(disk)
            if record.vm is not None:
                raise DiskInUse(disk=disk, vm=record.vm)
            tx.redo(FINISH_DELETE, disk=disk, revision=self._revision_of(disk))
            with step(f"Deleting hard drive {disk}"):
                self.delete_volume(record)
            with tx.commit() as change:
                change.delete(DiskRecord, disk)

    def forget(self, record: DiskRecord) -> None:
        """Delete the record of a detached disk whose data is out of reach; Conflict if it is not."""
        if not self.available(record):
            raise Conflict(text=f"The data of hard drive {record.id} is there. Delete it with `--forget` left out.")
        with step(f"Forgetting hard drive {record.id}"), self._store.change() as change:
            now = change.get(DiskRecord, record.id)
            if now is not None and now.vm is not None:
                raise DiskInUse(disk=record.id, vm=now.vm)
            change.delete(DiskRecord, record.id)

    def adopt(self, volume: str, backend: str, driver: DiskDriver | None = None) -> DiskRecord:
        """A record for a volume that exists on *backend* (name or ID) on this node, and that nothing uses.

        It is put into the store by the caller, in a change in which `check_adopted` passes.
        """
        record = backends.find(self._store, backend)
        driver = driver or DiskDriver.VIRTIO
        check_driver(driver)
        names.volume_name(volume)
        reason = backends.problem(record, self._node, self._nodes)
        if reason:
            raise BackendUnavailable(backend=record.name, node=self._node, reason=reason)
        volumes = self._nodes(self._node).volumes(record)
        found = volumes.check_import(volume)
        if found.size % SECTOR or found.size < SECTOR:
            raise VolumeUnusable(
                name=volume,
                location=volumes.location,
                reason=f"its size, {found.size} bytes, is not a multiple of {SECTOR} bytes.",
            )
        self._refuse_used(volumes.path(volume), f"Volume '{volume}' in {volumes.location}")
        disk = DiskRecord(
            id=names.new_id("hd"),
            volume=volume,
            backend=record.name,
            size=found.size,
            driver=driver,
            storage_type=StorageType.LOCAL,
            nodes=tuple(sorted(record.nodes)) if record.shared else (self._node,),
            format=VolumeFormat(found.format),
        )
        self.check_adopted(disk)
        return disk

    def check_adopted(self, record: DiskRecord, change: Change | None = None) -> None:
        """Raise Conflict if the volume became another hard drive's, or its backend is gone; to be asked in *change*."""
        if change is not None and change.get(BackendRecord, record.backend) is None:
            raise Conflict(text=f"Storage backend '{record.backend}' was deleted meanwhile.")
        owner = self._owner(record.backend, record.volume)
        if owner is not None:
            raise Conflict(text=f"Volume '{record.volume}' is hard drive {owner} already.")
        if (record.backend, record.volume) in backends.being_made(self._store):
            raise Conflict(text=f"Volume '{record.volume}' is being made by another task, or was not finished.")

    def find(self, disk: str) -> DiskRecord:
        """The disk with that ID; NotFound if there is none."""
        record = self._store.get(DiskRecord, names.object_id(disk, "hd", "hard drive"))
        if record is None:
            raise NotFound(kind="hard drive", name=disk, hint=" `mcvirt hard-drive list` shows all of them.")
        return record

    # --- after a failure or a crash ---------------------------------------------------------------------------------

    def _undo_create(self, backend: str, volume: str) -> None:
        owner = self._owner(backend, volume)
        if owner is not None:
            log.warning("volume %s on %s belongs to hard drive %s: it is kept", volume, backend, owner)
            return
        record = self._store.get(BackendRecord, backend)
        if record is None:
            log.warning("volume %s can't have been made: there is no storage backend %s", volume, backend)
            return
        volumes = self._nodes(self._node).volumes(record)
        reason = backends.problem(record, self._node, self._nodes)
        if reason:
            # Deleting "what is not there" from storage that is not there would leave it behind for good.
            raise BackendUnavailable(backend=backend, node=self._node, reason=reason)
        volumes.delete(volume)

    def _finish_after_crash(self, disk: str, revision: int) -> None:
        with self._locks.hold(f"disk:{disk}"):
            record = self._store.get(DiskRecord, disk)
            if record is None or record.vm is not None or self._revision_of(disk) != revision:
                return  # deleted, or somebody has begun to use it again: then its deletion is no longer wanted
            self.check_delete(record)
            self.delete_volume(record)
            with self._store.change() as change:
                change.delete(DiskRecord, disk)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _home(self, record: DiskRecord) -> str:
        """The node that acts on the disk's volume."""
        return self._node if self._node in record.nodes else record.nodes[0]

    def _volumes(self, record: DiskRecord) -> Volumes:
        return self._nodes(self._home(record)).volumes(backends.find(self._store, record.backend))

    def _owner(self, backend: str, volume: str) -> str | None:
        disks = self._store.all(DiskRecord).values()
        return next((disk.id for disk in disks if disk.volume == volume and disk.backend == backend), None)

    def _revision_of(self, disk: str) -> int:
        rows = self._store.query("SELECT revision FROM record WHERE kind = ? AND key = ?", (DiskRecord.kind, disk))
        return int(rows[0][0]) if rows else -1

    def _refuse_used(self, path: str, what: str) -> None:
        real = os.path.realpath(path)
        for used in self._used_paths():
            if used == path or os.path.realpath(used) == real:
                raise Conflict(text=f"{what} is used by a domain of libvirt's ({used}). Take it away there first.")


def _takes_direct(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno != errno.EINVAL
    return True
