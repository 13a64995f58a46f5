"""What hard drives are to become, decided before anything is made: type, backend, size, space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from mcvirt import names
from mcvirt.errors import BackendUnavailable, BadArgument, Conflict, NoSpace, Refused
from mcvirt.types.storage import VolumeFormat
from mcvirt.types.vm import DiskDriver, DiskSpec, StorageType
from mcvirt.units import MIB, SECTOR, TIB, format_size
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import BackendRecord, DiskRecord
from mcvirtd.state.store import Store
from mcvirtd.storage import backends
from mcvirtd.storage.backends import Nodes

LEAST = MIB
LIMIT = 64 * TIB


class DiskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A hard drive that has passed all checks: *volume* on *backend*, made by *node*, to be had by *nodes*."""

    id: str
    volume: str
    backend: str
    size: int
    driver: DiskDriver
    storage_type: StorageType
    node: str
    nodes: tuple[str, ...]
    format: VolumeFormat = VolumeFormat.RAW

    def record(self, size: int) -> DiskRecord:
        """The record of the detached disk, *size* bytes long as it was made."""
        return DiskRecord(
            id=self.id,
            volume=self.volume,
            backend=self.backend,
            size=size,
            driver=self.driver,
            storage_type=self.storage_type,
            nodes=self.nodes,
            format=self.format,
        )


class Planner:
    """Makes plans. *storage_types* are those that can be had now."""

    def __init__(self, store: Store, nodes: Nodes, storage_types: Callable[[], Sequence[StorageType]]) -> None:
        self._store = store
        self._nodes = nodes
        self._types = storage_types

    def plan(self, specs: Sequence[DiskSpec], *, node: str, taken: Sequence[DiskRecord]) -> tuple[DiskPlan, ...]:
        """Plans in the order of *specs*; raises all that stands against them as one error."""
        reasons = Reasons()
        plans: list[DiskPlan] = []
        # Backends named come first: they decide for those that are to be chosen.
        kin = self._kin(taken) or self._named(specs)
        for spec in specs:
            with reasons.gather():
                check_size(spec.size)
            with reasons.gather():
                check_driver(spec.driver)
            with reasons.gather():
                storage_type = self._storage_type(spec.storage_type)
                backend = self._backend(spec.backend, node, kin)
                kin = kin or backend
                plans.append(_plan(spec, storage_type, backend, node))
        needed: Counter[str] = Counter()
        for plan in plans:
            needed[plan.backend] += plan.size if LEAST <= plan.size < LIMIT else 0
        for name in sorted(needed):
            reason = backends.problem(backends.find(self._store, name), node, self._nodes)
            if reason:
                del needed[name]
                reasons.add(BackendUnavailable(backend=name, node=node, reason=reason))
        with reasons.gather():
            self.check_space(needed, node)
        reasons.raise_all()
        return tuple(plans)

    def check_space(self, needed: Mapping[str, int], node: str) -> None:
        """Raise NoSpace if a backend has less free on *node* than the bytes *needed* of it."""
        reasons = Reasons()
        for name, size in sorted(needed.items()):
            free = self._nodes(node).volumes(backends.find(self._store, name)).free()
            if size > free:
                reasons.add(NoSpace(backend=name, node=node, free=format_size(free), needed=format_size(size)))
        reasons.raise_all()

    def check_fits(self, record: DiskRecord, taken: Sequence[DiskRecord]) -> None:
        """Raise if the disk's backend is of another kind than that of the disks *taken*."""
        kin = self._kin([disk for disk in taken if disk.id != record.id])
        if kin is not None:
            _check_kin(backends.find(self._store, record.backend), kin)

    def _kin(self, taken: Sequence[DiskRecord]) -> BackendRecord | None:
        return next((found for disk in taken if (found := self._store.get(BackendRecord, disk.backend))), None)

    def _named(self, specs: Sequence[DiskSpec]) -> BackendRecord | None:
        for spec in specs:
            if spec.backend is not None:
                try:
                    return backends.find(self._store, spec.backend)
                except Refused:
                    continue  # said where its disk is planned
        return None

    def _storage_type(self, wanted: StorageType | None) -> StorageType:
        available = self._types()
        if wanted is None:
            if len(available) == 1:
                return available[0]
            choices = ", ".join(each.value for each in available)
            raise BadArgument(what="storage type", why=f"it must be said which one is meant: {choices}.")
        if wanted not in available:
            choices = ", ".join(each.value for each in available)
            raise Conflict(
                text=f"Storage type '{wanted.value}' can't be used: DRBD is not enabled on this cluster. "
                f"Choose {choices}, or leave the storage type out."
            )
        return wanted

    def _backend(self, wanted: str | None, node: str, kin: BackendRecord | None) -> BackendRecord:
        if wanted is not None:
            backend = backends.find(self._store, wanted)
            if node not in backend.nodes:
                raise backends.not_on_node(backend, node)
            if kin is not None:
                _check_kin(backend, kin)
            return backend
        here = [each for each in self._store.all(BackendRecord).values() if node in each.nodes]
        fitting = [each for each in here if kin is None or _akin(each, kin)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            choices = ", ".join(sorted(each.name for each in fitting))
            raise BadArgument(what="storage backend", why=f"it must be said which one is meant: {choices}.")
        if here and kin is not None:
            raise BadArgument(
                what="storage backend",
                why=f"there is none on node '{node}' that fits to '{kin.name}', where the machine has disks.",
            )
        raise BadArgument(
            what="storage backend", why=f"there is none on node '{node}' yet. `mcvirt storage create` makes one."
        )


def check_size(size: int) -> None:
    """Raise BadArgument if no hard drive has that size."""
    why = ""
    if size < LEAST:
        why = f"{format_size(size) if size > 0 else size} is too small: a hard drive has at least 1 MiB."
    elif size >= LIMIT:
        why = f"{format_size(size)} is too large: a hard drive has less than 64 TiB."
    elif size % SECTOR:
        why = f"{size} bytes is not a multiple of {SECTOR} bytes."
    if why:
        raise BadArgument(what="size of the hard drive", why=why)


def check_driver(driver: DiskDriver | None) -> None:
    """Raise BadArgument if no machine of ours has that bus."""
    if driver is DiskDriver.SD:
        raise BadArgument(
            what="driver SD",
            why="QEMU's machines have no slot for SD cards here. Choose VIRTIO, SCSI, SATA, IDE or USB.",
        )


def _plan(spec: DiskSpec, storage_type: StorageType, backend: BackendRecord, node: str) -> DiskPlan:
    disk = names.new_id("hd")
    return DiskPlan(
        id=disk,
        volume=f"mcvirt-{disk}",
        backend=backend.name,
        size=spec.size,
        driver=spec.driver or DiskDriver.VIRTIO,
        storage_type=storage_type,
        node=node,
        nodes=tuple(sorted(backend.nodes)) if backend.shared else (node,),
        format=backend.format,
    )


def _akin(one: BackendRecord, other: BackendRecord) -> bool:
    return one.type is other.type and one.shared == other.shared


def _check_kin(backend: BackendRecord, kin: BackendRecord) -> None:
    if not _akin(backend, kin):
        raise BadArgument(
            what=f"storage backend '{backend.name}'",
            why="the disks of one virtual machine must all be on backends of one type, all shared or none; it has "
            f"disks on '{kin.name}' ({_kind(kin)}), and '{backend.name}' is {_kind(backend)}.",
        )


def _kind(backend: BackendRecord) -> str:
    return f"{backend.type.value}, {'shared' if backend.shared else 'not shared'}"
