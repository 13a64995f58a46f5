"""Hard drives of one volume, on this node or on storage that several nodes share."""

from __future__ import annotations

import errno
import logging
import os

from mcvirt.errors import BackendUnavailable, Conflict, McvirtError, TaskCancelled
from mcvirtd.state.records import BackendRecord, DiskRecord
from mcvirtd.state.store import Change, Store
from mcvirtd.storage import backends
from mcvirtd.storage.backends import DELETE_VOLUME, Nodes
from mcvirtd.storage.kind import DiskSource, UsedPaths
from mcvirtd.storage.planning import DiskPlan, Planner
from mcvirtd.storage.volumes import Volumes
from mcvirtd.tasks.task import current_task, step
from mcvirtd.tasks.transaction import Journal, Transaction

log = logging.getLogger(__name__)


class LocalDisks:
    """See DiskKind."""

    def __init__(
        self, *, store: Store, journal: Journal, nodes: Nodes, node: str, used_paths: UsedPaths, planner: Planner
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._node = node
        self._used_paths = used_paths
        self._planner = planner
        journal.register(DELETE_VOLUME, self._undo_create)

    # --- checks: they change nothing --------------------------------------------------------------------------------

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

    def takes_over(self, record: DiskRecord) -> str:
        """Why this node can't go on with the disk where the one that used it is gone, in a sentence; '' if it can."""
        return self.available(record)

    def movable(self, record: DiskRecord) -> bool:
        """Whether the disk is on shared storage."""
        backend = self._store.get(BackendRecord, record.backend)
        return backend is not None and backend.shared

    def source(self, record: DiskRecord) -> DiskSource:
        """Where the hypervisor finds the disk, and how its volume is written; known before it exists."""
        volumes = self._volumes(record)
        path = volumes.path(record.volume)
        direct = volumes.kind == "block" or _takes_direct(path)
        return DiskSource(path=path, kind=volumes.kind, format=record.format.value, direct=direct)

    def check_grow(self, record: DiskRecord, new_size: int) -> None:
        """Raise if there is no space for it."""
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
        refuse_used(self._used_paths, self._volumes(record).path(record.volume), f"Hard drive {record.id}")

    # --- acts -------------------------------------------------------------------------------------------------------

    def create(self, tx: Transaction, plan: DiskPlan) -> DiskRecord:
        """Make a planned disk."""
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

    def keep(self, change: Change, record: DiskRecord) -> None:
        """Nothing was taken."""

    def grow(self, record: DiskRecord, new_size: int) -> int:
        """Make the volume at least *new_size* long and return what it is then."""
        return self._volumes(record).grow(record.volume, new_size, cancel=current_task().cancelled)

    def finish_growth(self, record: DiskRecord, was: int) -> None:
        """Nothing is left to be done."""

    def activate(self, record: DiskRecord) -> str:
        """Make the volume ready for use on this node; returns its path."""
        return self._volumes(record).activate(record.volume)

    def deactivate(self, record: DiskRecord) -> None:
        """Nothing is to be done: a volume stays ready."""

    def take_down(self, record: DiskRecord) -> None:
        """There is nothing to end."""

    def bring_up(self, record: DiskRecord) -> None:
        """Nor to begin."""

    def delete_volume(self, record: DiskRecord) -> None:
        """Delete the disk's data; nothing happens if it is gone."""
        self._volumes(record).delete(record.volume)

    def forget(self, record: DiskRecord) -> None:
        """There is one volume, and it is out of reach."""

    # --- parts ------------------------------------------------------------------------------------------------------

    def _undo_create(self, backend: str, volume: str) -> None:
        owner = owner_of(self._store, backend, volume)
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

    def _home(self, record: DiskRecord) -> str:
        """The node that acts on the disk's volume."""
        return self._node if self._node in record.nodes else record.nodes[0]

    def _volumes(self, record: DiskRecord) -> Volumes:
        return self._nodes(self._home(record)).volumes(backends.find(self._store, record.backend))


def owner_of(store: Store, backend: str, volume: str) -> str | None:
    """The hard drive that has the volume, if one does."""
    disks = store.all(DiskRecord).values()
    return next((disk.id for disk in disks if disk.backend == backend and volume in backends.volumes_of(disk)), None)


def refuse_used(used_paths: UsedPaths, path: str, what: str) -> None:
    """Raise Conflict if a domain of libvirt's has *path*, by whichever name."""
    real = os.path.realpath(path)
    for used in used_paths():
        if used == path or os.path.realpath(used) == real:
            raise Conflict(text=f"{what} is used by a domain of libvirt's ({used}). Take it away there first.")


def _takes_direct(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno != errno.EINVAL
    return True
