"""The volumes of disks whose data goes from one node to another: made there, and dropped where they are not needed."""

from __future__ import annotations

import msgspec

from mcvirt.errors import BackendUnavailable, Conflict, NoSpace, NotFound, VolumeUnusable
from mcvirt.units import format_size
from mcvirtd.migration.expectations import awaited
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord
from mcvirtd.storage import backends
from mcvirtd.storage.backends import Nodes
from mcvirtd.storage.local_disks import refuse_used
from mcvirtd.storage.volumes import Volumes
from mcvirtd.tasks.task import current_task
from mcvirtd.vm.arrived import DROP_COPY
from mcvirtd.vm.ground import Ground


class Copies:
    """Volumes on this node of disks that are another node's, or were this one's."""

    def __init__(self, ground: Ground, nodes: Nodes) -> None:
        self._store = ground.store
        self._journal = ground.journal
        self._hypervisor = ground.hypervisor
        self._node = ground.node
        self._nodes = nodes
        ground.journal.register(DROP_COPY, self._drop_due)

    def check(self, disk: DiskRecord, reasons: Reasons) -> None:
        """Why a copy of the disk can't be made here."""
        backend = backends.find(self._store, disk.backend)
        problem = backends.problem(backend, self._node, self._nodes)
        if problem:
            reasons.add(BackendUnavailable(backend=backend.name, node=self._node, reason=problem))
            return
        volumes = self._nodes(self._node).volumes(backend)
        free = volumes.free()
        if disk.size > free:
            reasons.add(
                NoSpace(backend=backend.name, node=self._node, free=format_size(free), needed=format_size(disk.size))
            )
        if volumes.exists(disk.volume):
            reasons.add(Conflict(text=f"There is a volume '{disk.volume}' in {volumes.location} on this node already."))
        if volumes.format != disk.format.value:
            reasons.add(
                Conflict(
                    text=f"Hard drive {disk.id} is {disk.format.value}, and '{backend.name}' makes {volumes.format}."
                )
            )

    def path(self, disk: DiskRecord) -> str:
        """Where the copy is, or would be."""
        return self._nodes(self._node).volumes(backends.find(self._store, disk.backend)).path(disk.volume)

    def make(self, disk: DiskRecord, source: str) -> None:
        """Make the empty volume of a disk that is node *source*'s, and have it due to be dropped."""
        due = {"disk": disk.id, "backend": disk.backend, "volume": disk.volume, "source": self._member(source)}
        self._journal.add(0, "undo", DROP_COPY, due)
        volumes = self._nodes(self._node).volumes(backends.find(self._store, disk.backend))
        made = volumes.create(disk.volume, disk.size, cancel=current_task().cancelled)
        if made != disk.size:
            raise VolumeUnusable(
                name=disk.volume,
                location=volumes.location,
                reason=f"it became {format_size(made)} long, and the hard drive has {format_size(disk.size)}.",
            )

    def forget(self, disk: str) -> None:
        """The copy is the disk now, or was dropped: it is no longer due to be."""
        self._journal.withdraw(DROP_COPY, disk=disk)

    def _member(self, node: str) -> str:
        """What tells a node from a later one of the same name."""
        record = self._store.get(NodeRecord, node)
        return f"{node} {record.id}" if record is not None else node

    def _drop_due(self, disk: str, backend: str, volume: str, source: str = "") -> None:
        record = self._store.get(DiskRecord, disk)
        if record is not None and record.vm is not None and awaited(self._store, self._journal, record.vm):
            # The guest may have written to it: its source has to say first that it went on there.
            raise Conflict(
                text=f"Volume '{volume}' is kept until it is known whether virtual machine '{record.vm}' has come here."
            )
        if source and self._member(source.partition(" ")[0]) != source:
            self._keep(disk, backend, volume, source.partition(" ")[0])
        else:
            self.drop(disk, backend, volume)

    def _keep(self, disk: str, backend: str, volume: str, source: str) -> None:
        """Raise Conflict as long as there is such a volume, and it is no hard drive."""
        volumes = self._at(backend, volume)
        if volumes is not None and volumes.exists(volume):
            raise Conflict(
                text=f"Volume '{volume}' is a copy of hard drive {disk} that came from node '{source}', which was "
                "removed from the cluster, and it may be all that is left: so it is kept. `mcvirt hard-drive import "
                f"{volume} {backend}` on node '{self._node}' makes a hard drive of it, once no domain of libvirt's "
                "there uses it. If it is not wanted, delete the volume yourself."
            )

    def _at(self, backend: str, volume: str) -> Volumes | None:
        """Where the volume would be; None if it is a hard drive of this node's, or the backend is not here any more."""
        mine = (disk for disk in self._store.all(DiskRecord).values() if self._node in disk.nodes)
        if any(disk.backend == backend and volume in backends.volumes_of(disk) for disk in mine):
            return None
        place = self._store.get(BackendRecord, backend)
        if place is None or self._node not in place.nodes:
            return None
        problem = backends.problem(place, self._node, self._nodes)
        if problem:
            raise BackendUnavailable(backend=backend, node=self._node, reason=problem)
        return self._nodes(self._node).volumes(place)

    def drop(self, disk: str, backend: str, volume: str) -> None:
        """Delete a volume that was made for a disk, or was one, unless the disk is this node's now."""
        record = self._store.get(DiskRecord, disk)
        if record is not None and self._node in record.nodes:
            return
        volumes = self._at(backend, volume)
        if volumes is not None:
            refuse_used(self._hypervisor.list_block_paths, volumes.path(volume), f"Volume '{volume}'")
            volumes.delete(volume)

    def find(self, disk: str) -> DiskRecord:
        """The disk's record."""
        record = self._store.get(DiskRecord, disk)
        if record is None:
            raise NotFound(kind="hard drive", name=disk)
        return record


def here(disk: DiskRecord, node: str) -> DiskRecord:
    """The record as it will be once the disk is on *node*."""
    return msgspec.structs.replace(disk, nodes=(node,))
