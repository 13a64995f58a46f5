"""Storage backends."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import Any

import msgspec

from mcvirt import names
from mcvirt.api.storage import StorageApi
from mcvirt.errors import (
    AlreadyExists,
    BackendUnavailable,
    BadArgument,
    Conflict,
    InUse,
    McvirtError,
    NodeUnreachable,
    NotFound,
)
from mcvirt.types.storage import BackendInfo, BackendSpec, BackendType, VolumeFormat
from mcvirtd.reasons import Reasons
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord, VmRecord
from mcvirtd.state.replication import given_up
from mcvirtd.state.store import Change, Store
from mcvirtd.storage import backends
from mcvirtd.storage.backends import NodeLocations, Nodes
from mcvirtd.storage.looking import Looking
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import step
from mcvirtd.tasks.transaction import Journal, Transaction

log = logging.getLogger(__name__)
TRUE_MARK = "storage.true_mark"


class StorageService(StorageApi):
    """Storage backends, as seen from *node*. *everywhere* reaches the locations on other nodes, *nodes* the volumes."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        locks: Locks,
        nodes: Nodes,
        node: str,
        everywhere: NodeLocations | None = None,
        looking: Looking[BackendInfo] | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._locks = locks
        self._nodes = nodes
        self._places: NodeLocations = everywhere or nodes
        self._node = node
        self._looking: Looking[BackendInfo] = looking or Looking()
        journal.register(TRUE_MARK, self._true_mark)

    # --- list -------------------------------------------------------------------------------------------------------

    def list(self) -> tuple[BackendInfo, ...]:
        records = sorted(self._store.all(BackendRecord).values(), key=lambda record: record.name)
        here = {record.name: partial(self._look, record) for record in records if self._node in record.nodes}
        found = self._looking.at(here)
        silent = f"it does not answer on node '{self._node}'."
        return tuple(
            found.get(record.name) or _info(record, problem=silent if record.name in here else "") for record in records
        )

    def _look(self, record: BackendRecord) -> BackendInfo:
        problem = backends.problem(record, self._node, self._nodes)
        if not problem:
            try:
                volumes = self._nodes(self._node).volumes(record)
                return _info(record, free=volumes.free(), total=volumes.total())
            except McvirtError as error:
                problem = str(error)
        return _info(record, problem=problem)

    # --- create and delete ------------------------------------------------------------------------------------------

    def create(self, spec: BackendSpec) -> BackendInfo:
        with self._locks.hold(f"backend:{spec.name}"):
            record = self._plan(spec)
            with self._journal.transaction() as tx:
                with step("Marking the locations"):
                    self._mark(tx, record, tuple(record.nodes))
                with tx.commit() as change:
                    if change.get(BackendRecord, record.name) is not None:
                        raise AlreadyExists(kind="storage backend", name=record.name)
                    change.put(record)
            return self._look(record) if self._node in record.nodes else _info(record)

    def delete(self, name: str) -> None:
        with self._locks.hold(f"backend:{name}"):
            record = self._known(name)
            self._refuse_used(record)
            with self._journal.transaction() as tx:
                with step("Taking the marks off"):
                    self._unmark(tx, record, tuple(record.nodes))
                with tx.commit() as change:
                    self._refuse_used(record)
                    change.delete(BackendRecord, name)

    def _plan(self, spec: BackendSpec) -> BackendRecord:
        reasons = Reasons()
        with reasons.gather():
            names.backend_name(spec.name)
            if self._store.get(BackendRecord, spec.name) is not None:
                raise AlreadyExists(kind="storage backend", name=spec.name)
        self._check_kind(spec, reasons)
        location = None
        if spec.location is not None:
            with reasons.gather():
                location = backends.checked_location(spec.type, spec.location)
        named = spec.nodes or dict.fromkeys(sorted(self._all_nodes()), "")
        # Its part can't be looked at, and a mark must not be set unseen: `storage add-node` adds it when it is back.
        there = {node: location for node, location in named.items() if node not in given_up()}
        if named and not there:
            reasons.add(BadArgument(what="nodes", why="it is to go on without all of them."))
        record = BackendRecord(
            name=spec.name,
            id=names.new_id("sb"),
            type=spec.type,
            location=location,
            nodes=self._checked_nodes(spec.type, spec.location, there, reasons),
            shared=spec.shared,
            thin_pool=spec.thin_pool,
            format=spec.format,
        )
        self._check_places(record, tuple(record.nodes), reasons)
        reasons.raise_all()
        return record

    @staticmethod
    def _check_kind(spec: BackendSpec, reasons: Reasons) -> None:
        if spec.thin_pool is not None:
            with reasons.gather():
                if spec.type is not BackendType.LVM:
                    raise BadArgument(what="thin pool", why="only backends of type Lvm can have one.")
                names.volume_name(spec.thin_pool)
                if spec.shared:
                    raise BadArgument(what="thin pool", why="it can't be shared: LVM uses one on one node only.")
        if spec.format is not VolumeFormat.RAW and spec.type is not BackendType.FILE:
            reasons.add(BadArgument(what=f"format {spec.format.value}", why="only backends of type File can have it."))

    def _checked_nodes(
        self, kind: BackendType, default: str | None, named: dict[str, str], reasons: Reasons
    ) -> dict[str, str]:
        known, found = self._all_nodes(), {}
        for node, location in named.items():
            with reasons.gather():
                if node not in known:
                    raise NotFound(kind="node", name=names.printable(node), hint=" `mcvirt info` shows all of them.")
                if not location and default is None:
                    what = "volume group" if kind is BackendType.LVM else "directory"
                    raise BadArgument(
                        what=f"location on node '{node}'", why=f"name a {what} for this node, or one for all nodes."
                    )
                found[node] = backends.checked_location(kind, location) if location else ""
        return found

    def _check_places(self, record: BackendRecord, nodes: tuple[str, ...], reasons: Reasons) -> None:
        """Ask each of *nodes* what is wrong with the location there, as far as it is named properly."""
        others = tuple(self._store.all(BackendRecord).values())
        for node in nodes:
            location = record.location_on(node)
            if location is None:
                continue
            try:
                faults = self._places(node).faults(record, others)
            except McvirtError as error:
                faults = [str(error)]
            for fault in faults:
                reasons.add(BadArgument(what=f"location {location} on node '{node}'", why=fault))

    # --- nodes ------------------------------------------------------------------------------------------------------

    def add_nodes(self, name: str, nodes: dict[str, str]) -> BackendInfo:
        with self._locks.hold(f"backend:{name}"):
            record = self._known(name)
            reasons = Reasons()
            if not nodes:
                reasons.add(BadArgument(what="nodes", why="name at least one."))
            for node in nodes:
                if node in record.nodes:
                    reasons.add(Conflict(text=f"Storage backend '{name}' is on node '{node}' already."))
            new = {node: location for node, location in nodes.items() if node not in record.nodes}
            added = self._checked_nodes(record.type, record.location, new, reasons)
            wider = msgspec.structs.replace(record, nodes={**record.nodes, **added})
            self._check_places(wider, tuple(added), reasons)
            self._check_sameness(wider, tuple(added), reasons)
            reasons.raise_all()
            with self._journal.transaction() as tx:
                if not record.shared:
                    with step("Marking the locations"):
                        self._mark(tx, wider, tuple(added))
                with tx.commit() as change:
                    self._commit_nodes(change, record, wider.nodes)
            return self._look(wider) if self._node in wider.nodes else _info(wider)

    def remove_nodes(self, name: str, nodes: tuple[str, ...]) -> BackendInfo:
        with self._locks.hold(f"backend:{name}"):
            record = self._known(name)
            reasons = Reasons()
            if not nodes:
                reasons.add(BadArgument(what="nodes", why="name at least one."))
            for node in dict.fromkeys(nodes):
                if node not in record.nodes:
                    reasons.add(Conflict(text=f"Storage backend '{name}' is not on node '{names.printable(node)}'."))
            left = {node: location for node, location in record.nodes.items() if node not in nodes}
            if not left:
                reasons.add(
                    Conflict(text=f"These are all nodes of it. `mcvirt storage delete {name}` deletes the backend.")
                )
            with reasons.gather():
                self._refuse_used(record, frozenset(nodes))
            reasons.raise_all()
            narrower = msgspec.structs.replace(record, nodes=left)
            with self._journal.transaction() as tx:
                if not record.shared:
                    with step("Taking the marks off"):
                        self._unmark(tx, record, tuple(dict.fromkeys(nodes)))
                with tx.commit() as change:
                    self._refuse_used(record, frozenset(nodes))
                    self._commit_nodes(change, record, left)
            return self._look(narrower) if self._node in left else _info(narrower)

    def _commit_nodes(self, change: Change, record: BackendRecord, nodes: dict[str, str]) -> None:
        change.edit(BackendRecord, record.name, nodes=nodes)
        if record.shared:
            for disk in self._disks_on(record):
                change.edit(DiskRecord, disk.id, nodes=tuple(sorted(nodes)))
            for name in {disk.vm for disk in self._disks_on(record) if disk.vm is not None}:
                vm = change.get(VmRecord, name)
                if vm is not None and not set(vm.nodes) <= set(nodes):
                    change.edit(VmRecord, name, nodes=tuple(node for node in vm.nodes if node in nodes))

    def _check_sameness(self, record: BackendRecord, added: tuple[str, ...], reasons: Reasons) -> None:
        """A shared backend must be the same storage on a new node, any other must not."""
        for node in added:
            with contextlib.suppress(NodeUnreachable), reasons.gather():  # said already
                volumes = self._places(node).volumes(record)
                if volumes.check():
                    continue  # said already
                same = record.id in volumes.marked_with()
                if record.shared and not same:
                    raise _not_shared(record, node, volumes.location)
                if same and not record.shared:
                    raise Conflict(
                        text=f"{volumes.location} on node '{node}' is what another of its nodes has as well."
                    )

    # --- marks ------------------------------------------------------------------------------------------------------

    def _mark(self, tx: Transaction, record: BackendRecord, nodes: tuple[str, ...]) -> None:
        for node in self._marking(record, nodes):
            volumes = self._places(node).volumes(record)
            tx.undo(TRUE_MARK, node=node, backend=_plain(record))
            volumes.mark(record.id)
        for node in nodes:
            volumes = self._places(node).volumes(record)
            marks = volumes.marked_with()
            if record.id not in marks:
                raise _not_shared(record, node, volumes.location)
            if marks != {record.id}:
                # Somebody made another backend of the same place at the same moment.
                raise Conflict(text=f"{volumes.location} on node '{node}' has become the location of another backend.")

    def _marking(self, record: BackendRecord, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """The nodes that set or take marks: where all see the same, one is enough, and best this one."""
        if not record.shared:
            return nodes
        return (self._node,) if self._node in nodes else nodes[:1]

    def _unmark(self, tx: Transaction, record: BackendRecord, nodes: tuple[str, ...]) -> None:
        for node in self._marking(record, tuple(node for node in nodes if node not in given_up())):
            volumes = self._places(node).volumes(record)
            if volumes.check():
                log.warning("%s on %s is not available: its mark stays", volumes.location, node)
                continue
            tx.undo(TRUE_MARK, node=node, backend=_plain(record))
            volumes.unmark(record.id)

    def _true_mark(self, node: str, backend: dict[str, Any]) -> None:
        """Make the location carry the mark of *backend* if the store says that it is there, and not carry it if not."""
        record = msgspec.convert(backend, BackendRecord)
        if node not in self._all_nodes():
            log.warning("%s on %s is no matter any more: that node has left", record.name, node)
            return
        with self._locks.hold(f"backend:{record.name}"):
            stored = next((each for each in self._store.all(BackendRecord).values() if each.id == record.id), None)
            here = stored is not None and (stored.shared or stored.location_on(node) == record.location_on(node))
            volumes = self._places(node).volumes(record)
            faults = volumes.check()
            if faults and here:
                raise BackendUnavailable(backend=record.name, node=node, reason=" ".join(faults))
            if faults:
                # A mark too many is named, with its remedy, when the location is to be used again.
                log.warning("%s on %s is not available: its mark stays, if it has one", volumes.location, node)
            else:
                (volumes.mark if here else volumes.unmark)(record.id)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _known(self, name: str) -> BackendRecord:
        record = self._store.get(BackendRecord, name)
        if record is None:
            hint = " `mcvirt storage list` shows all of them."
            raise NotFound(kind="storage backend", name=names.printable(name), hint=hint)
        return record

    def _all_nodes(self) -> frozenset[str]:
        return frozenset((self._node, *self._store.all(NodeRecord)))

    def _disks_on(self, record: BackendRecord) -> tuple[DiskRecord, ...]:
        return tuple(disk for disk in self._store.all(DiskRecord).values() if disk.backend == record.name)

    def _refuse_used(self, record: BackendRecord, nodes: frozenset[str] | None = None) -> None:
        """Raise InUse if hard drives need the backend, or, where *nodes* are named, need it there."""
        disks = [disk for disk in self._disks_on(record) if nodes is None or self._needs(disk, record, nodes)]
        if disks:
            users = ", ".join(f"hard drive {disk.id}" + (f" of '{disk.vm}'" if disk.vm else "") for disk in disks)
            hint = "Delete the hard drives first."
            if nodes is not None and record.shared:
                hint = "Register these virtual machines on another node first, with `mcvirt unregister` and `register`."
            raise InUse(kind="Storage backend", name=record.name, users=users, hint=hint)
        if any(name == record.name for name, _ in backends.being_made(self._store)):
            raise Conflict(
                text=f"A hard drive is being made on storage backend '{record.name}', or could not be taken away yet. "
                "`mcvirt task list` shows the task."
            )

    def _needs(self, disk: DiskRecord, record: BackendRecord, nodes: frozenset[str]) -> bool:
        if not record.shared:
            return not nodes.isdisjoint(disk.nodes)
        vm = self._store.get(VmRecord, disk.vm) if disk.vm else None
        return vm is not None and (vm.node in nodes or nodes.issuperset(vm.nodes))


def _plain(record: BackendRecord) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(record)
    return plain


def _not_shared(record: BackendRecord, node: str, location: str) -> Conflict:
    return Conflict(
        text=f"Storage backend '{record.name}' is shared, but {location} on node '{node}' is not the storage that the "
        "other nodes have."
    )


def _info(
    record: BackendRecord, *, free: int | None = None, total: int | None = None, problem: str = ""
) -> BackendInfo:
    return BackendInfo(
        id=record.id,
        name=record.name,
        type=record.type,
        location=record.location,
        nodes=record.nodes,
        shared=record.shared,
        thin_pool=record.thin_pool,
        format=record.format,
        free=free,
        total=total,
        problem=problem,
    )
