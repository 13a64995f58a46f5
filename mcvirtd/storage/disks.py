"""Hard drives as data: planned, made, grown, adopted and deleted. Which machine has one is not decided here.

How a disk is kept is the matter of its storage type's DiskKind; what is the same for all of them is here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from mcvirt import names
from mcvirt.errors import (
    BackendUnavailable,
    BadArgument,
    Conflict,
    DiskInUse,
    McvirtError,
    NotFound,
    VolumeUnusable,
)
from mcvirt.types.storage import VolumeFormat
from mcvirt.types.vm import DiskDriver, DiskSpec, StorageType
from mcvirt.units import SECTOR
from mcvirtd.state.records import (
    BackendRecord,
    DiskRecord,
    ReplicaClaimRecord,
    SplitUndoRecord,
    VerificationRecord,
)
from mcvirtd.state.store import Change, Store
from mcvirtd.storage import backends
from mcvirtd.storage.backends import Nodes
from mcvirtd.storage.kind import DiskKind, DiskSource, UsedPaths
from mcvirtd.storage.local_disks import LocalDisks, owner_of, refuse_used
from mcvirtd.storage.planning import DiskPlan, Planner, Replicas, check_driver, check_size
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import current_task, step
from mcvirtd.tasks.transaction import Journal, Transaction

__all__ = ["DiskPlan", "DiskSource", "Disks"]

log = logging.getLogger(__name__)

FINISH_DELETE = "disk.finish_delete"


class Disks:
    """The hard drives that this node can have. *used_paths* are those that any domain of libvirt's has.

    *replicated* keeps those of the type Drbd, and *replicas* is what planning asks about them; None: there are none.
    """

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        locks: Locks,
        nodes: Nodes,
        node: str,
        used_paths: UsedPaths,
        storage_types: Callable[[], Sequence[StorageType]] = lambda: (StorageType.LOCAL,),
        replicated: DiskKind | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._locks = locks
        self._nodes = nodes
        self._node = node
        self._used_paths = used_paths
        self._planner = Planner(store, nodes, storage_types, replicas)
        self._local: DiskKind = LocalDisks(
            store=store, journal=journal, nodes=nodes, node=node, used_paths=used_paths, planner=self._planner
        )
        self._replicated = replicated
        journal.register(FINISH_DELETE, self._finish_after_crash)

    def _kind(self, storage_type: StorageType) -> DiskKind:
        if storage_type is StorageType.LOCAL:
            return self._local
        if self._replicated is None:
            raise Conflict(text="This node has no DRBD: its replicated hard drives can't be used.")
        return self._replicated

    def _of(self, record: DiskRecord) -> DiskKind:
        return self._kind(record.storage_type)

    # --- checks: they change nothing --------------------------------------------------------------------------------

    def plan(
        self, specs: Sequence[DiskSpec], *, node: str, taken: Sequence[DiskRecord] = (), nodes: Sequence[str] = ()
    ) -> tuple[DiskPlan, ...]:
        """What is to be made for *specs* on *node*, for a machine that has *taken*; raises all refusals together.

        *nodes* are those that the machine is to run on, as far as that is known.
        """
        return self._planner.plan(specs, node=node, taken=taken, nodes=nodes)

    def check_fits(self, record: DiskRecord, taken: Sequence[DiskRecord]) -> None:
        """Raise if a machine that has the disks *taken* may not have this one as well."""
        self._planner.check_fits(record, taken)

    def check_grow(self, record: DiskRecord, new_size: int) -> None:
        """Raise all that stands against making the disk *new_size* bytes long."""
        refuse_deleting(record)
        check_size(new_size)
        if new_size <= record.size:
            raise BadArgument(what="new size", why="a hard drive can be made larger only.")
        problem = self.available(record)
        if problem:
            raise Conflict(text=f"Hard drive {record.id} can't be grown: {problem}")
        self._of(record).check_grow(record, new_size)

    def finish_growth(self, record: DiskRecord, was: int) -> None:
        """What is to be done once the record of a disk that had *was* bytes has its new size; it may be done again."""
        self._of(record).finish_growth(record, was)

    def check_delete(self, record: DiskRecord) -> None:
        """Raise if the disk's volume can't be deleted now."""
        self._of(record).check_delete(record)

    def check_unused(self, record: DiskRecord) -> None:
        """Raise Conflict if a domain of libvirt's has the disk's volume, whoever gave it to it."""
        self._of(record).check_unused(record)

    def available(self, record: DiskRecord) -> str:
        """Why the disk can't be used on this node now, in a sentence; '' if it can."""
        return deletion_begun(record) or self._of(record).available(record)

    def movable(self, record: DiskRecord) -> bool:
        """Whether another node may have the disk's data without this one's doing."""
        return len(record.nodes) > 1 and self._of(record).movable(record)

    def takes_over(self, record: DiskRecord) -> str:
        """Why this node can't go on with the disk where the node that used it is gone, in a sentence; '' if it can."""
        if not self.movable(record):
            return f"its data is only on node {', '.join(repr(name) for name in record.nodes)}."
        if self._node not in record.nodes:
            return f"storage backend '{record.backend}' is not on node '{self._node}'."
        return deletion_begun(record) or self._of(record).takes_over(record)

    def source(self, record: DiskRecord) -> DiskSource:
        """Where the hypervisor finds the disk, and how its volume is written; known before it exists."""
        return self._of(record).source(record)

    # --- acts -------------------------------------------------------------------------------------------------------

    def create(self, tx: Transaction, plan: DiskPlan) -> DiskRecord:
        """Make a planned disk; the record is for the caller to put, by `put`, into the change that commits *tx*."""
        return self._kind(plan.storage_type).create(tx, plan)

    def put(self, change: Change, record: DiskRecord) -> None:
        """Store the record of a disk just made, which ends its making."""
        change.put(record)
        self._of(record).keep(change, record)

    def grow(self, record: DiskRecord, new_size: int) -> int:
        """Make the volume at least *new_size* long and return what it is then. The record is left to the caller."""
        return self._of(record).grow(record, new_size)

    def activate(self, record: DiskRecord) -> str:
        """Make the volume ready for use on this node; returns its path."""
        return self._of(record).activate(record)

    def deactivate(self, record: DiskRecord) -> None:
        """No guest of this node has the disk any more. Its data stays."""
        self._of(record).deactivate(record)

    def begin_delete(self, record: DiskRecord) -> None:
        """The data of a machine's disk is about to be deleted; what fails here has changed nothing.

        One that is on two nodes is marked, for the machine is not to use what is left where only one of them is done.
        """
        if record.replica is None:
            return
        self._of(record).take_down(record)
        try:
            with self._store.change() as change:
                _unclaimed(change, record.id)
                change.edit(DiskRecord, record.id, deleting=True, deleter=current_task().id)
        except McvirtError:
            self._of(record).bring_up(record)
            raise

    def delete_volume(self, record: DiskRecord) -> None:
        """Delete the disk's data; nothing happens if it is gone. The record is left to the caller."""
        self._of(record).delete_volume(record)

    @staticmethod
    def drop(change: Change, disk: str) -> None:
        """Delete the records of a disk whose data is deleted."""
        change.delete(DiskRecord, disk)
        for kind in (VerificationRecord, SplitUndoRecord):
            if change.get(kind, disk) is not None:
                change.delete(kind, disk)

    def finish_delete(self, disk: str) -> None:
        """Delete a detached disk, data and record; a crash in the middle is finished at the next start."""
        # Who attaches it at this moment holds its lock, and may wait for a lock of ours: do not wait for each other.
        with self._locks.hold(f"disk:{disk}", within=0), self._journal.transaction() as tx:
            self.find(disk)
            tx.redo(FINISH_DELETE, disk=disk)
            # Another node's locks are not ours: only the order of changes tells who was first to attach or to delete.
            with self._store.change() as change:
                begun_before = detached(change, disk).deleting
                record = self._mark_deleting(change, disk)
                tx.leave_due_if_unknown()
            with step(f"Deleting hard drive {disk}"):
                try:
                    self._of(record).take_down(record)
                except McvirtError:
                    if not begun_before:
                        self._unmark(disk)
                    raise
                self.delete_volume(record)
            with tx.commit() as change:
                self.drop(change, disk)

    def forget(self, record: DiskRecord) -> None:
        """Delete the record of a detached disk whose data is out of reach; Conflict if it is not."""
        if not self._of(record).available(record) and self._can_be_deleted(record):
            raise Conflict(text=f"The data of hard drive {record.id} is there. Delete it with `--forget` left out.")
        with step(f"Forgetting hard drive {record.id}"):
            with self._store.change() as change:
                self._mark_deleting(change, record.id)
            self._of(record).forget(record)
            with self._store.change() as change:
                self.drop(change, record.id)

    @staticmethod
    def _mark_deleting(change: Change, disk: str) -> DiskRecord:
        detached(change, disk)
        return change.edit(DiskRecord, disk, deleting=True, deleter=current_task().id)

    def _unmark(self, disk: str) -> None:
        try:
            with self._store.change() as change:
                record = change.get(DiskRecord, disk)
                # Another node may have begun to delete it meanwhile.
                if record is not None and record.deleter == current_task().id:
                    change.edit(DiskRecord, disk, deleting=False, deleter="")
        except McvirtError as error:
            log.warning("hard drive %s stays marked as being deleted: %s", disk, error)

    def _can_be_deleted(self, record: DiskRecord) -> bool:
        try:
            self.check_delete(record)
        except McvirtError:
            return False
        return True

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
        refuse_used(self._used_paths, volumes.path(volume), f"Volume '{volume}' in {volumes.location}")
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
        owner = owner_of(self._store, record.backend, record.volume)
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

    def _finish_after_crash(self, disk: str) -> None:
        with self._locks.hold(f"disk:{disk}"):
            with self._store.change() as change:  # in its turn, so that no mark is being stored that is not seen
                record = change.get(DiskRecord, disk)
            if record is None or not record.deleting:
                return  # deleted, or nothing was touched: then it is anybody's to use, and to delete
            self.check_delete(record)
            self.delete_volume(record)
            with self._store.change() as change:
                self.drop(change, disk)


def detached(change: Change, disk: str) -> DiskRecord:
    """The disk, which *change* may attach or delete as far as machines go; raises if it is gone, or attached."""
    record = change.get(DiskRecord, disk)
    if record is None:
        raise NotFound(kind="hard drive", name=disk, hint=" It was deleted meanwhile.")
    if record.vm is not None:
        raise DiskInUse(disk=disk, vm=record.vm)
    _unclaimed(change, disk)
    return record


def _unclaimed(change: Change, disk: str) -> None:
    """No side of the hard drive is being made anew; Conflict otherwise."""
    if change.get(ReplicaClaimRecord, disk) is not None:
        raise Conflict(text=f"Hard drive {disk} is being moved to another node; `mcvirt task list` shows the task.")


def refuse_deleting(record: DiskRecord) -> None:
    """Raise Conflict if the disk's deletion has begun: its data may be gone."""
    if why := deletion_begun(record):
        raise Conflict(text=f"Hard drive {record.id} can't be used: {why}")


def deletion_begun(record: DiskRecord) -> str:
    """That the disk is being deleted, and what finishes it where that has failed, in a sentence; '' if it is not."""
    if not record.deleting:
        return ""
    words = f"delete {record.vm}" if record.vm else f"hard-drive delete {record.id}"
    return f"it is being deleted. `mcvirt {words}` finishes a deletion that has failed."
