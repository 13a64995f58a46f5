"""What hard drives are to become, decided before anything is made: type, backend, size, space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from mcvirt import names
from mcvirt.errors import BackendUnavailable, BadArgument, Conflict, McvirtError, NoSpace, NotFound, Refused
from mcvirt.types.replica import Outlook
from mcvirt.types.storage import BackendType, VolumeFormat
from mcvirt.types.vm import DiskDriver, DiskSpec, StorageType
from mcvirt.units import MIB, SECTOR, TIB, format_size
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord
from mcvirtd.state.store import Store
from mcvirtd.storage import backends
from mcvirtd.storage.backends import Nodes

LEAST = MIB
LIMIT = 64 * TIB


class DiskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A hard drive that has passed all checks: *volume* on *backend*, made by *node*, to be had by *nodes*.

    *minors* and *ports* are those that a replicated one can't have, since something else uses them.
    """

    id: str
    volume: str
    backend: str
    size: int
    driver: DiskDriver
    storage_type: StorageType
    node: str
    nodes: tuple[str, ...]
    format: VolumeFormat = VolumeFormat.RAW
    minors: frozenset[int] = frozenset()
    ports: frozenset[int] = frozenset()

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


class Replicas(Protocol):
    """What planning asks about replicated hard drives."""

    def outlooks(self, needed: Mapping[str, Mapping[str, int]]) -> Mapping[str, Outlook | McvirtError]:
        """What stands against new legs on each node of *needed*, which maps node to backend to bytes; or why it
        can't be known. The nodes are asked at the same time.
        """

    def needed(self, size: int) -> int:
        """How many bytes a leg of a hard drive of *size* bytes takes on its backend."""


class Planner:
    """Makes plans. *storage_types* are those that can be had now."""

    def __init__(
        self,
        store: Store,
        nodes: Nodes,
        storage_types: Callable[[], Sequence[StorageType]],
        replicas: Replicas | None = None,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._types = storage_types
        self._replicas = replicas

    def plan(
        self, specs: Sequence[DiskSpec], *, node: str, taken: Sequence[DiskRecord], nodes: Sequence[str] = ()
    ) -> tuple[DiskPlan, ...]:
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
                storage_type = self._storage_type(spec, node, kin, taken)
                backend = self._backend(spec.backend, node, kin, storage_type)
                kin = kin or backend
                places = (
                    self._two_nodes(spec, backend, node, taken, nodes)
                    if storage_type is StorageType.DRBD
                    else _places(spec, backend, node)
                )
                plans.append(_plan(spec, storage_type, backend, node, places))
        if self._replicas is not None and any(plan.storage_type is StorageType.DRBD for plan in plans):
            plans = self._with_outlook(self._replicas, plans, reasons)
        else:
            self._check_backends(plans, node, reasons)
        reasons.raise_all()
        return tuple(plans)

    def _check_backends(self, plans: Sequence[DiskPlan], node: str, reasons: Reasons) -> None:
        needed: Counter[str] = Counter()
        for plan in plans:
            needed[plan.backend] += plan.size if LEAST <= plan.size < LIMIT else 0
        for name, size in sorted(needed.items()):
            reason, free = backends.survey(backends.find(self._store, name), node, self._nodes)
            if reason:
                reasons.add(BackendUnavailable(backend=name, node=node, reason=reason))
            elif size > free:
                reasons.add(NoSpace(backend=name, node=node, free=format_size(free), needed=format_size(size)))

    @staticmethod
    def _with_outlook(replicas: Replicas, plans: Sequence[DiskPlan], reasons: Reasons) -> list[DiskPlan]:
        """The same plans, with what the nodes say about them."""
        needed: dict[str, Counter[str]] = {}
        for plan in plans:
            size = plan.size if LEAST <= plan.size < LIMIT else 0
            replicated = plan.storage_type is StorageType.DRBD
            for name in plan.nodes if replicated else (plan.node,):
                needed.setdefault(name, Counter())[plan.backend] += replicas.needed(size) if replicated else size
        minors: set[int] = set()
        ports: set[int] = set()
        for outlook in replicas.outlooks(needed).values():
            if isinstance(outlook, McvirtError):
                reasons.add(outlook if isinstance(outlook, Refused) else Conflict(text=str(outlook)))
                continue
            minors |= set(outlook.minors)
            ports |= set(outlook.ports)
            for fault in outlook.faults:
                reasons.add(Conflict(text=fault))
        replace = msgspec.structs.replace
        return [replace(plan, minors=frozenset(minors), ports=frozenset(ports)) for plan in plans]

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

    def _storage_type(
        self, spec: DiskSpec, node: str, kin: BackendRecord | None, taken: Sequence[DiskRecord]
    ) -> StorageType:
        available = self._types()
        wanted = spec.storage_type
        if wanted is None:
            theirs = {disk.storage_type for disk in taken} & set(available)
            if spec.nodes:
                wanted = StorageType.DRBD
            elif len(available) == 1:
                return available[0]
            elif len(theirs) == 1:
                return theirs.pop()
            elif not self._could_replicate(spec, node, kin):
                return StorageType.LOCAL
            else:
                choices = ", ".join(each.value for each in available)
                raise BadArgument(what="storage type", why=f"it must be said which one is meant: {choices}.")
        if wanted not in available:
            choices = ", ".join(each.value for each in available)
            raise Conflict(
                text=f"Storage type '{wanted.value}' can't be used: DRBD is not enabled on this cluster. "
                f"Choose {choices}, or leave the storage type out."
            )
        return wanted

    def _could_replicate(self, spec: DiskSpec, node: str, kin: BackendRecord | None) -> bool:
        if spec.backend is not None:
            return _why_unreplicated(backends.find(self._store, spec.backend), node) == ""
        return any(_fits(each, kin) and _why_unreplicated(each, node) == "" for each in self._all_backends())

    def _all_backends(self) -> Sequence[BackendRecord]:
        return list(self._store.all(BackendRecord).values())

    def _backend(
        self, wanted: str | None, node: str, kin: BackendRecord | None, storage_type: StorageType
    ) -> BackendRecord:
        replicated = storage_type is StorageType.DRBD
        if wanted is not None:
            backend = backends.find(self._store, wanted)
            if node not in backend.nodes:
                raise backends.not_on_node(backend, node)
            if kin is not None:
                _check_kin(backend, kin)
            if replicated and (why := _why_unreplicated(backend, node)):
                raise BadArgument(what=f"storage backend '{backend.name}'", why=why)
            return backend
        here = [each for each in self._all_backends() if node in each.nodes]
        if replicated:
            here = [each for each in here if not _why_unreplicated(each, node)]
        fitting = [each for each in here if _fits(each, kin)]
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
        if replicated:
            raise BadArgument(
                what="storage backend",
                why=f"there is none on node '{node}' for replicated hard drives: they need one of type Lvm that is "
                "not shared, on this node and another one.",
            )
        raise BadArgument(
            what="storage backend", why=f"there is none on node '{node}' yet. `mcvirt storage create` makes one."
        )

    def _two_nodes(
        self, spec: DiskSpec, backend: BackendRecord, node: str, taken: Sequence[DiskRecord], nodes: Sequence[str]
    ) -> tuple[str, ...]:
        """The two nodes that a replicated disk is to be on."""
        members = self._store.all(NodeRecord)
        kin = next((disk.nodes for disk in taken if disk.storage_type is StorageType.DRBD), None)
        wanted = tuple(sorted(set(spec.nodes or kin or nodes)))
        if not wanted:
            wanted = tuple(sorted(name for name in backend.nodes if name in members))
            if len(wanted) > 2:
                raise BadArgument(
                    what="nodes",
                    why=f"storage backend '{backend.name}' is on {', '.join(wanted)}. Name the two that the hard drive "
                    "is to be on with --nodes.",
                )
        for name in wanted:
            if name not in members:
                raise NotFound(kind="node", name=names.printable(name), hint=" `mcvirt info` shows all of them.")
        if len(wanted) != 2:
            raise BadArgument(
                what="nodes", why=f"a replicated hard drive is on two nodes, not on {', '.join(wanted) or 'none'}."
            )
        if node not in wanted:
            raise BadArgument(what="nodes", why=f"this node, '{node}', must be among them.")
        if kin is not None and wanted != tuple(sorted(kin)):
            raise BadArgument(
                what="nodes", why=f"the machine's other replicated hard drives are on {' and '.join(sorted(kin))}."
            )
        for name in wanted:
            if name not in backend.nodes:
                raise backends.not_on_node(backend, name)
        return wanted


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


def _places(spec: DiskSpec, backend: BackendRecord, node: str) -> tuple[str, ...]:
    if spec.nodes:
        raise BadArgument(what="nodes", why="they can be chosen for replicated hard drives (--storage-type Drbd) only.")
    return tuple(sorted(backend.nodes)) if backend.shared else (node,)


def _plan(
    spec: DiskSpec, storage_type: StorageType, backend: BackendRecord, node: str, nodes: tuple[str, ...]
) -> DiskPlan:
    disk = names.new_id("hd")
    return DiskPlan(
        id=disk,
        volume=backends.volume_of(disk),
        backend=backend.name,
        size=spec.size,
        driver=spec.driver or DiskDriver.VIRTIO,
        storage_type=storage_type,
        node=node,
        nodes=nodes,
        format=backend.format,
    )


def _why_unreplicated(backend: BackendRecord, node: str) -> str:
    """Why no replicated hard drive of *node* can be on the backend, or ''."""
    if backend.type is not BackendType.LVM or backend.shared:
        return f"replicated hard drives need one of type Lvm that is not shared, and it is {_kind(backend)}."
    if not set(backend.nodes) - {node}:
        return "replicated hard drives need one that is on two nodes at least."
    return ""


def _fits(backend: BackendRecord, kin: BackendRecord | None) -> bool:
    return kin is None or _akin(backend, kin)


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
