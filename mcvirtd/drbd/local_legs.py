"""The legs of replicated hard drives: the side of each on this node, and through the peers those on other nodes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import msgspec

from mcvirt import names
from mcvirt.errors import BackendUnavailable, CommandFailed, Conflict, NoSpace, ProgramMissing
from mcvirt.types.drbd import ResourceState
from mcvirt.types.replica import LegCommand, LegSpec, Outlook
from mcvirt.types.storage import BackendType
from mcvirt.types.vm import DiskDriver, StorageType
from mcvirt.units import format_size
from mcvirtd.drbd.config import Resource, addresses, metadata_size, resource_name
from mcvirtd.drbd.resources import as_connected, lonely_resource_of, resource_of
from mcvirtd.drbd.status import Progress as Measured
from mcvirtd.host.drbd_numbers import minors_in_use, ports_in_use
from mcvirtd.state.records import BackendRecord, DiskRecord, DrbdRecord, NodeRecord, Replica, ReplicaClaimRecord
from mcvirtd.state.store import Store
from mcvirtd.storage import backends
from mcvirtd.storage.backends import Nodes, aside_volume, replica_volumes, volume_of
from mcvirtd.storage.planning import check_size
from mcvirtd.storage.volumes import Progress, Volumes

log = logging.getLogger(__name__)

AGREE_WITHIN = 60.0
DROP_WITHIN = 120.0
"""How long what makes a leg may take to hear that it is not wanted any more."""


class Verbs(Protocol):
    """What `mcvirtd.host.drbd` does to the resources of this machine."""

    def write_resource(self, resource: Resource) -> None: ...
    def remove_resource(self, name: str) -> None: ...
    def create_metadata(self, name: str) -> None: ...
    def up(self, name: str) -> None: ...
    def down(self, name: str) -> None: ...
    def primary(self, name: str, *, force: bool = False) -> None: ...
    def secondary(self, name: str) -> None: ...
    def connect(self, name: str, *, discard_my_data: bool = False) -> None: ...
    def disconnect(self, name: str, *, force: bool = False) -> None: ...
    def outdate(self, name: str) -> None: ...
    def invalidate(self, name: str) -> None: ...
    def verify(self, name: str) -> None: ...
    def new_current_uuid(self, name: str, *, clear_bitmap: bool = False) -> None: ...
    def pause_sync(self, name: str) -> None: ...
    def resume_sync(self, name: str) -> None: ...
    def resize(self, name: str, *, assume_clean: bool = False) -> None: ...
    def faults(self, address: str | None = None) -> list[str]: ...
    def missing(self) -> list[str]: ...
    def port_is_free(self, address: str, port: int) -> bool: ...
    def progress(self) -> Mapping[int, Measured]: ...
    def addresses(self, name: str) -> frozenset[str]: ...
    def adjust(self, name: str) -> None: ...


class States(Protocol):
    """What is asked of the reader of the kernel's events."""

    @property
    def alive(self) -> bool:
        """Whether the states are as the kernel says now."""

    def wait_alive(self, within: float) -> bool:
        """Whether the states are as the kernel says, waiting for that at most *within* seconds."""

    def state(self, resource: str) -> ResourceState | None:
        """The resource as it is; None if the kernel has none of that name."""

    def wait(
        self,
        resource: str,
        predicate: Callable[[ResourceState | None], bool],
        within: float,
        cancel: threading.Event | None = None,
    ) -> ResourceState:
        """The state as soon as *predicate* holds for it; DeadlinePassed, saying what it is, if it does not."""


class Legs(Protocol):
    """The legs on one node; see the contract DrbdPeerApi. NodeUnreachable if it can't be asked."""

    def outlook(self, needed: Mapping[str, int]) -> Outlook: ...

    def make(self, leg: LegSpec, *, progress: Progress | None = None, cancel: threading.Event | None = None) -> int: ...

    def drop(self, disk: str, backend: str) -> None: ...

    def grow(self, disk: str, size: int) -> int: ...

    def command(self, disk: str, command: LegCommand) -> None: ...

    def state(self, disk: str) -> ResourceState | None: ...


class _Making:
    """Somebody works at a leg."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.unwanted = threading.Event()
        self.users = 0


class LocalLegs:
    """Those on this node. Everything is checked here, since it may come from another node."""

    def __init__(self, *, store: Store, node: str, nodes: Nodes, verbs: Verbs, states: States) -> None:
        self._store = store
        self._node = node
        self._nodes = nodes
        self._verbs = verbs
        self._states = states
        self._lock = threading.Lock()
        self._making: dict[str, _Making] = {}
        # A request to make a leg may arrive after the one to drop it. IDs are never used again, and a leg that comes
        # back to a node that had one has another secret.
        self._dropped: set[str] = set()

    # --- looking ------------------------------------------------------------------------------------------------------

    def outlook(self, needed: Mapping[str, int]) -> Outlook:
        """What stands against new legs here, and what numbers they can't have."""
        faults = [f"Node '{self._node}' can't replicate: {fault}" for fault in self._faults()]
        for name, size in sorted(needed.items()):
            backend = backends.find(self._store, name)
            reason, free = backends.survey(backend, self._node, self._nodes)
            if reason:
                faults.append(str(BackendUnavailable(backend=name, node=self._node, reason=reason)))
            elif size > free:
                error = NoSpace(backend=name, node=self._node, free=format_size(free), needed=format_size(size))
                faults.append(str(error))
        return Outlook(faults=tuple(faults), minors=tuple(minors_in_use()), ports=tuple(ports_in_use()))

    def _faults(self) -> list[str]:
        record = self._store.get(DrbdRecord, "drbd")
        if record is None or not record.enabled:
            return ["DRBD is not enabled on this cluster; `mcvirt drbd enable` does that."]
        node = self._store.get(NodeRecord, self._node)
        if node is None or not node.address:
            return ["it has no cluster address; `mcvirt node --set-ip-address` sets it."]
        if self._states.alive:
            return self._verbs.missing()  # what reads the events has been started before they went
        return self._verbs.faults(node.address) or ["DRBD's events can't be read; the log of mcvirtd there says why."]

    def state(self, disk: str) -> ResourceState | None:
        """The leg as the kernel sees it, with what its disk has read; None if it has none."""
        state = self._states.state(resource_name(_checked(disk)))
        counted = None if state is None or state.minor is None else self._verbs.progress().get(state.minor)
        return state if state is None or counted is None else msgspec.structs.replace(state, read=counted.read)

    # --- making and dropping ------------------------------------------------------------------------------------------

    def make(self, leg: LegSpec, *, progress: Progress | None = None, cancel: threading.Event | None = None) -> int:
        """Make the leg; what fails, or is cancelled, leaves some of it behind."""
        name = resource_name(_checked(leg.disk))
        check_size(leg.size)
        with self._alone(leg.disk) as unwanted:
            backend = self._claimed(leg)
            self._dropped.discard(leg.disk)  # one that it had before
            resource = resource_of(self._store, self._disk_of(leg), self._node)
            volumes = self._volumes(backend)
            data, metadata = replica_volumes(volume_of(leg.disk))
            either = _Either(unwanted, cancel)
            size = volumes.create(data, leg.size, progress=progress, cancel=either)
            volumes.create_bare(metadata, metadata_size(size))
            self._verbs.write_resource(resource)
            self._verbs.create_metadata(name)
            local = resource.local
            if not self._verbs.port_is_free(local.address, resource.port):
                # The kernel would say so in its log only, and leave both sides waiting for each other.
                raise Conflict(
                    text=f"Something on node '{self._node}' has taken port {resource.port} of {local.address} "
                    f"meanwhile, which was to be hard drive {leg.disk}'s. Try again: another one is chosen then."
                )
            self._verbs.up(name)
        return size

    def _claimed(self, leg: LegSpec) -> BackendRecord:
        """The backend, if the leg is really to be made."""
        claim = self._store.get(ReplicaClaimRecord, leg.disk)
        told = (leg.backend, leg.minor, leg.port, leg.nodes)
        if claim is None or _making(claim) in self._dropped or told != _facts(claim) or self._has_it(claim, leg):
            raise Conflict(
                text=f"Hard drive {leg.disk} is not to be made, as far as node '{self._node}' knows. It may have been "
                "given up, or the node has not caught up with the cluster yet."
            )
        backend = backends.find(self._store, leg.backend)
        if backend.type is not BackendType.LVM or backend.shared or self._node not in leg.nodes:
            raise Conflict(
                text=f"Storage backend '{backend.name}' can't have replicated hard drives on '{self._node}'."
            )
        return backend

    def _has_it(self, claim: ReplicaClaimRecord, leg: LegSpec) -> bool:
        """Only the new side of a hard drive that there is already is ever made."""
        new = claim.replacement
        return new is not None and (new.secret != leg.secret or claim.coordinator == self._node)

    @staticmethod
    def _disk_of(leg: LegSpec) -> DiskRecord:
        return DiskRecord(
            id=leg.disk,
            volume=volume_of(leg.disk),
            backend=leg.backend,
            size=leg.size,
            driver=DiskDriver.VIRTIO,
            storage_type=StorageType.DRBD,
            nodes=leg.nodes,
            replica=Replica(minor=leg.minor, port=leg.port, secret=leg.secret),
        )

    def drop(self, disk: str, backend: str) -> None:
        """Delete the leg and whatever there is of it."""
        name = resource_name(_checked(disk))
        claim = self._store.get(ReplicaClaimRecord, disk)
        with self._lock:
            self._dropped.add(disk if claim is None else _making(claim))
            if (making := self._making.get(disk)) is not None:
                making.unwanted.set()
        with self._alone(disk):
            self._down(name)
            self._verbs.remove_resource(name)
            record = self._store.get(BackendRecord, backend)
            if record is None or record.location_on(self._node) is None:
                return
            reason = backends.problem(record, self._node, self._nodes)
            if reason:
                # Deleting "what is not there" from storage that is not there would leave it behind for good.
                raise BackendUnavailable(backend=backend, node=self._node, reason=reason)
            volumes = self._volumes(record)
            for volume in (aside_volume(volume_of(disk)), *replica_volumes(volume_of(disk))):
                volumes.delete(volume)

    # --- what there is ------------------------------------------------------------------------------------------------

    def readdress(self, disk: str) -> bool:
        """Have the leg use the cluster addresses on record, and connect there; False if it can't be now.

        One that is cut off stays so, and only its file is written.
        """
        name = resource_name(_checked(disk))
        with self._alone(disk):
            record = self._store.get(DiskRecord, disk)
            if record is not None:
                record = as_connected(self._store, record, self._node)
            if record is None or disk in self._dropped or self._node not in record.nodes:
                return True
            if not self._states.alive:
                return False
            state = self._states.state(name)
            if state is not None and state.role == state.peer_role == "Primary":
                return False  # a migration, which needs the connection, and what the files do not say
            resource = resource_of(self._store, record, self._node)
            self._verbs.write_resource(resource)
            if state is None or state.connection == "StandAlone" or self._verbs.addresses(name) == addresses(resource):
                return True
            log.info("DRBD resource %s uses other addresses from now on", name)
            self._verbs.adjust(name)
        return True

    def reconnect(self, disk: str) -> None:
        """Have the leg be connected with the side that the records say, as they say; its data is the newer one.

        A leg that is the only one is connected with nobody.
        """
        name = resource_name(_checked(disk))
        with self._alone(disk):
            record = self._store.get(DiskRecord, disk)
            if record is None:
                return
            record = as_connected(self._store, record, self._node)
            alone = len(record.nodes) < 2
            resource = (lonely_resource_of if alone else resource_of)(self._store, record, self._node)
            state = self._states.state(name)
            if state is None:
                self._verbs.write_resource(resource)
                return  # who brings it up goes by that
            if state.connection != "StandAlone" and self._verbs.addresses(name) == addresses(resource):
                return
            # drbdadm looks for what is to be disconnected in the file: it must still be the old one.
            self._cut(name)
            if state.role != "Primary":
                # A Primary that is left alone begins another generation by itself. Else nothing would tell the old
                # side, which is not copied to any more, from this one.
                self._verbs.new_current_uuid(name)
            self._verbs.write_resource(resource)
            if not alone:
                self._verbs.adjust(name)

    def _cut(self, name: str) -> None:
        try:
            self._verbs.disconnect(name)
        except CommandFailed as error:
            log.warning("DRBD resource %s is disconnected by force: %s", name, error)
            self._verbs.disconnect(name, force=True)

    def grow(self, disk: str, size: int) -> int:
        """Make the volumes long enough."""
        check_size(size)
        record = self._known(disk)
        with self._alone(disk):
            volumes = self._volumes(backends.find(self._store, record.backend))
            data, metadata = replica_volumes(record.volume)
            # What fails is to fail while the data's volume is as long as before. That may become longer than was asked.
            volumes.grow(metadata, metadata_size(size))
            made = volumes.grow(data, size)
            volumes.grow(metadata, metadata_size(made))
        return made

    def command(self, disk: str, command: LegCommand) -> None:
        """Have DRBD do something to the leg."""
        if self._store.get(ReplicaClaimRecord, _checked(disk)) is None:
            self._known(disk)
        record = self._store.get(DiskRecord, disk)
        if command is LegCommand.UP and record is not None:
            self._prepare(as_connected(self._store, record, self._node))
        self._act(command, resource_name(disk))

    def _prepare(self, record: DiskRecord) -> None:
        """What the kernel is to be told is there, whatever somebody has done by hand."""
        if len(record.nodes) > 1:  # the other node may have been removed; then the file is the one that was
            self._verbs.write_resource(resource_of(self._store, record, self._node))
        volumes = self._volumes(backends.find(self._store, record.backend))
        for volume in replica_volumes(record.volume):
            volumes.activate(volume)

    def _down(self, name: str) -> None:
        try:
            self._verbs.down(name)
        except ProgramMissing:
            if self._states.state(name) is not None:
                raise  # the programs went, and what they had set up stays
            # Without them there never was one.

    def _pause_sync(self, name: str) -> None:
        """Tell the other side what this one is, and return when its word has come that it has done so too."""
        self._states.wait(name, _is_good, AGREE_WITHIN)
        self._verbs.pause_sync(name)
        self._states.wait(name, _has_heard, AGREE_WITHIN)

    def _act(self, command: LegCommand, name: str) -> None:
        verbs = self._verbs
        acts: dict[LegCommand, Callable[[], None]] = {
            LegCommand.UP: lambda: verbs.up(name),
            LegCommand.DOWN: lambda: self._down(name),
            LegCommand.PRIMARY: lambda: verbs.primary(name),
            LegCommand.PRIMARY_FORCED: lambda: verbs.primary(name, force=True),
            LegCommand.SECONDARY: lambda: verbs.secondary(name),
            LegCommand.NEW_CURRENT_UUID_CLEAN: lambda: verbs.new_current_uuid(name, clear_bitmap=True),
            LegCommand.PAUSE_SYNC: lambda: self._pause_sync(name),
            LegCommand.RESUME_SYNC: lambda: verbs.resume_sync(name),
            LegCommand.RESIZE_CLEAN: lambda: verbs.resize(name, assume_clean=True),
        }
        acts[command]()

    def _known(self, disk: str) -> DiskRecord:
        record = self._store.get(DiskRecord, _checked(disk))
        if record is None or record.replica is None or self._node not in record.nodes:
            raise Conflict(text=f"Hard drive {disk} has no leg on node '{self._node}', as far as that knows.")
        return record

    # --- parts --------------------------------------------------------------------------------------------------------

    def _volumes(self, backend: BackendRecord) -> Volumes:
        return self._nodes(self._node).volumes(backend)

    @contextmanager
    def _alone(self, disk: str) -> Iterator[threading.Event]:
        """In the block nobody else makes, drops or grows the leg; the event says that it is not wanted any more."""
        with self._lock:
            making = self._making.setdefault(disk, _Making())
            making.users += 1
        try:
            if not making.lock.acquire(timeout=DROP_WITHIN):
                raise Conflict(text=f"The leg of hard drive {disk} on node '{self._node}' is still being worked at.")
            try:
                yield making.unwanted
            finally:
                making.lock.release()
        finally:
            with self._lock:
                making.users -= 1
                if not making.users:
                    del self._making[disk]


class _Either(threading.Event):
    """Set as soon as one of two is."""

    def __init__(self, one: threading.Event, other: threading.Event | None) -> None:
        super().__init__()
        self._one, self._other = one, other

    def is_set(self) -> bool:
        return self._one.is_set() or (self._other is not None and self._other.is_set())


def _is_good(state: ResourceState | None) -> bool:
    return state is not None and state.connected and state.disk == "UpToDate"


def _has_heard(state: ResourceState | None) -> bool:
    return state is not None and state.both_good and "peer" in state.resync_suspended


def _checked(disk: str) -> str:
    return names.object_id(disk, "hd", "hard drive")


def _making(claim: ReplicaClaimRecord) -> str:
    """What tells one making of a leg from any other."""
    return claim.disk if claim.replacement is None else f"{claim.disk} {claim.replacement.secret}"


def _facts(claim: ReplicaClaimRecord) -> tuple[str, int, int, tuple[str, ...]]:
    return claim.backend, claim.minor, claim.port, claim.nodes
