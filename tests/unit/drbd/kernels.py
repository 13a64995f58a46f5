"""DRBD on two nodes, as far as we rely on it: metadata, connections, roles and sizes, with faults on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from mcvirt.errors import CommandFailed, DeadlinePassed, DrbdDeviceOpen, McvirtError, TaskCancelled
from mcvirt.types.drbd import ResourceState
from mcvirtd.drbd import config
from mcvirtd.drbd.config import Resource
from mcvirtd.drbd.status import Progress
from mcvirtd.storage.simulated_volumes import SimulatedVolumes

_BEHIND = {"UpToDate": "SyncSource", "Inconsistent": "SyncTarget"}


class Wires:
    """The connections between the kernels of several nodes; *cut* is set while nothing comes through."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.kernels: dict[str, Kernel] = {}
        self.cut = False
        self.slow = False  # what is to be copied stays so, until `copy`
        self.old_news = ""  # the node that hears at last what the other side was before both were taken for equal

    def copy(self) -> None:
        """Whatever is to be copied is."""
        with self.changed:
            slow, self.slow = self.slow, False
            self.settle()
            self.slow = slow

    def settle(self) -> None:
        """Bring all kernels to what follows from what they have; called with the lock held."""
        for kernel, name, state, peer in self._connected():
            there = peer.resources[name].disk
            if there == "UpToDate" and (state.disk == "Outdated" or (state.disk == "Inconsistent" and not self.slow)):
                kernel.put(name, disk="UpToDate")
                kernel.metadata[name] = True
        for kernel, name, state, peer in self._connected():
            there = peer.resources[name]
            copying = {state.disk, there.disk} == set(_BEHIND)
            if state.connection != "Connected":
                kernel.grow_by_itself(name, peer)
            kernel.put(
                name,
                connection="Connected",
                replication=_BEHIND[state.disk] if copying else "Established",
                out_of_sync=kernel.sizes[name] // 2 if copying else kernel.differs.get(name, 0),
                peer_role=there.role,
                peer_disk="Inconsistent" if kernel.node == self.old_news else there.disk,
                resync_suspended=",".join(kernel.paused(name, "user") + peer.paused(name, "peer")) or "no",
            )
            kernel.device_sizes[name] = min(kernel.sizes[name], peer.sizes[name])
        self.changed.notify_all()

    def _connected(self) -> list[tuple[Kernel, str, ResourceState, Kernel]]:
        """All sides that have another one, with that; what has none is made to say so."""
        found = []
        for kernel in self.kernels.values():
            for name, state in list(kernel.resources.items()):
                peer = self._peer(kernel, name)
                if peer is not None and not self.cut and state.connection != "StandAlone":
                    found.append((kernel, name, state, peer))
                    continue
                lost = {"connection": state.connection if state.connection == "StandAlone" else "Connecting"}
                kernel.put(name, peer_role="Unknown", peer_disk="DUnknown", replication="Off", **lost)
        return found

    def _peer(self, kernel: Kernel, name: str) -> Kernel | None:
        other = self.kernels.get(kernel.used[name].peer.node) if name in kernel.used else None
        if other is None or other is kernel or name not in other.resources or not other.running:
            return None
        if config.addresses(other.used[name]) != config.addresses(kernel.used[name]):
            return None
        if other.used[name].secret != kernel.used[name].secret:
            return None
        return None if other.resources[name].connection == "StandAlone" else other


class Kernel:
    """The verbs of one node's DRBD, and its states: both `Verbs` and `States`.

    *files* are the resource files, *metadata* the resources that have some, *resources* those that are up, *open*
    those whose device a program has open, *two_allowed* those that may be Primary on both sides.
    """

    def __init__(self, wires: Wires, node: str, volumes: Callable[[], SimulatedVolumes]) -> None:
        self.wires, self.node, self._volumes = wires, node, volumes
        self.files: dict[str, Resource] = {}
        self.used: dict[str, Resource] = {}  # what the files of those that are up were when the kernel read them
        self.metadata: dict[str, bool] = {}
        self.resources: dict[str, ResourceState] = {}
        self.sizes: dict[str, int] = {}  # of the data's volumes, as the kernel knows them
        self.device_sizes: dict[str, int] = {}
        self.differs: dict[str, int] = {}
        self.open: set[str] = set()
        self.two_allowed: set[str] = set()
        self.pausing: set[str] = set()
        self.written: dict[str, int] = {}  # bytes, without the other side
        self.calls: list[tuple[str, str]] = []
        self.taken_ports: set[int] = set()
        self.lacks: list[str] = []
        self.alive = True
        self.running = True
        self._failures: dict[str, list[tuple[McvirtError | Callable[[], None], bool]]] = {}
        wires.kernels[node] = self

    # --- faults -------------------------------------------------------------------------------------------------------

    def fail_next(self, verb: str, error: McvirtError | Callable[[], None], *, done: bool = False) -> None:
        """Let the next *verb* raise *error* (or call it), before or after it is done."""
        self._failures.setdefault(verb, []).append((error, done))

    def _do(self, verb: str, name: str, act: Callable[[], None]) -> None:
        self.calls.append((verb, name))
        failure = self._failures.get(verb, [])
        error, done = failure.pop(0) if failure else (None, False)
        if error is not None and not done:
            self._strike(error)
        with self.wires.changed:
            act()
            self.wires.settle()
        if error is not None and done:
            self._strike(error)

    @staticmethod
    def _strike(error: McvirtError | Callable[[], None]) -> None:
        if isinstance(error, McvirtError):
            raise error
        error()

    def put(self, name: str, **fields: object) -> ResourceState:
        self.resources[name] = msgspec.structs.replace(self.resources[name], **fields)
        return self.resources[name]

    def grow_by_itself(self, name: str, peer: Kernel) -> None:
        """What the handshake does where both volumes have become longer: nothing of the new part counts as equal."""
        before = self.device_sizes.get(name)
        if before is None:
            return
        for kernel in (self, peer):
            kernel.sizes[name] = kernel._volume(kernel.files[name].local.data)
        grown = min(self.sizes[name], peer.sizes[name]) - before
        if grown > 0:
            self.differs[name] = grown

    # --- verbs --------------------------------------------------------------------------------------------------------

    def write_resource(self, resource: Resource) -> None:
        self._do("write_resource", resource.name, lambda: self.files.__setitem__(resource.name, resource))

    def remove_resource(self, name: str) -> None:
        self._do("remove_resource", name, lambda: self.files.pop(name, None) and None)

    def create_metadata(self, name: str) -> None:
        def act() -> None:
            self._volume(self.files[name].local.metadata)
            self.metadata[name] = False

        self._do("create_metadata", name, act)

    def port_is_free(self, address: str, port: int) -> bool:
        assert address in {resource.local.address for resource in list(self.files.values())}
        return port not in self.taken_ports

    def up(self, name: str) -> None:
        def act() -> None:
            if name not in self.metadata or name not in self.files:
                raise CommandFailed(program="drbdadm", status=10, output="no metadata")
            self.sizes[name] = self._volume(self.files[name].local.data)
            self.used[name] = self.files[name]
            self.resources[name] = ResourceState(
                name=name,
                minor=self.files[name].minor,
                role="Secondary",
                connection="Connecting",
                disk="UpToDate" if self.metadata[name] else "Inconsistent",
                size=self.sizes[name],
            )

        self._do("up", name, act)

    def down(self, name: str) -> None:
        def act() -> None:
            if name in self.open:
                raise DrbdDeviceOpen(name=name)
            self.resources.pop(name, None)

        self._do("down", name, act)

    def primary(self, name: str, *, force: bool = False) -> None:
        def act() -> None:
            state = self._known(name)
            if force and state.disk in ("Outdated", "Consistent"):
                state = self.put(name, disk="UpToDate")
            peer = self.wires._peer(self, name)
            both = name in self.two_allowed and peer is not None and name in peer.two_allowed
            if state.disk != "UpToDate" or (state.peer_role == "Primary" and not both):
                raise CommandFailed(program="drbdadm", status=17, output="State change failed")
            self.put(name, role="Primary")

        self._do("primary", name, act)

    def secondary(self, name: str) -> None:
        def act() -> None:
            if name in self.open:
                raise DrbdDeviceOpen(name=name)
            self._known(name)
            self.put(name, role="Secondary")

        self._do("secondary", name, act)

    def new_current_uuid(self, name: str, *, clear_bitmap: bool = False) -> None:
        def act() -> None:
            state = self._known(name)
            peer = self.wires._peer(self, name)
            if not clear_bitmap and state.connection == "StandAlone":
                return
            if not clear_bitmap or not state.connected or peer is None:
                raise CommandFailed(program="drbdadm", status=17, output="not connected")
            for kernel in (self, peer):
                kernel.metadata[name] = True
                kernel.put(name, disk="UpToDate")

        self._do("new_current_uuid", name, act)

    def paused(self, name: str, who: str) -> list[str]:
        return [who] if name in self.pausing else []

    def pause_sync(self, name: str) -> None:
        def act() -> None:
            if self.wires.old_news != self.node:
                self.wires.old_news = ""  # this side's word is newer
            self.pausing.add(name)

        self._do("pause_sync", name, act)

    def resume_sync(self, name: str) -> None:
        self._do("resume_sync", name, lambda: self.pausing.discard(name))

    def resize(self, name: str, *, assume_clean: bool = False) -> None:
        def act() -> None:
            for kernel in self.wires.kernels.values():
                if name in kernel.resources:
                    kernel.sizes[name] = kernel._volume(kernel.files[name].local.data)

        def agree() -> None:
            with self.wires.changed:
                act()
                self.wires.settle()

        self._do("resize", name, lambda: self._known(name) and None)
        with self.wires.changed:
            state = self._known(name)
            if not assume_clean or "Primary" not in (state.role, state.peer_role):
                raise CommandFailed(program="drbdadm", status=10, output="Need one Primary node to resize.")
        # The kernels agree on it after the command has ended.
        threading.Timer(0.2, agree).start()

    def connect(self, name: str, *, discard_my_data: bool = False) -> None:
        del discard_my_data
        self._do("connect", name, lambda: self.put(name, connection="Connecting") and None)

    def disconnect(self, name: str, *, force: bool = False) -> None:
        def act() -> None:
            peer = self.wires._peer(self, name)
            if peer is not None and peer.resources[name].disk == "UpToDate" and self._known(name).role == "Primary":
                peer.put(name, disk="Outdated")
            self.put(name, connection="StandAlone", replication="Off", peer_disk="DUnknown")

        self._do("disconnect by force" if force else "disconnect", name, act)

    def outdate(self, name: str) -> None:
        self._do("outdate", name, lambda: self.put(name, disk="Outdated") and None)

    def invalidate(self, name: str) -> None:
        self._do("invalidate", name, lambda: None)

    def verify(self, name: str) -> None:
        self._do("verify", name, lambda: None)

    def two_primaries(self, name: str, allow: bool) -> None:
        def act() -> None:
            state = self._known(name)
            if allow:
                self.two_allowed.add(name)
            elif (state.role, state.peer_role) == ("Primary", "Primary"):
                raise CommandFailed(program="drbdadm", status=10, output="Can not clear allow_two_primaries")
            else:
                self.two_allowed.discard(name)

        self._do(f"two_primaries {allow}", name, act)

    def is_up(self, name: str) -> bool:
        return name in self.resources

    def progress(self) -> Mapping[int, Progress]:
        return {
            state.minor or 0: Progress(out_of_sync=self.written.get(name, 0)) for name, state in self.resources.items()
        }

    def addresses(self, name: str) -> frozenset[str]:
        return frozenset() if self._known(name).connection == "StandAlone" else config.addresses(self.used[name])

    def adjust(self, name: str) -> None:
        def act() -> None:
            self.used[name] = self.files[name]
            self.put(name, connection="Connecting")

        self._do("adjust", name, act)

    def faults(self, address: str | None = None) -> list[str]:
        del address
        return ["drbd-utils is not installed."]

    def missing(self) -> list[str]:
        return list(self.lacks)

    # --- states -------------------------------------------------------------------------------------------------------

    def wait_alive(self, within: float) -> bool:
        del within
        return self.alive

    def state(self, resource: str) -> ResourceState | None:
        found = self.resources.get(resource)
        return None if found is None else msgspec.structs.replace(found, open=resource in self.open)

    def wait(
        self,
        resource: str,
        predicate: Callable[[ResourceState | None], bool],
        within: float,
        cancel: threading.Event | None = None,
    ) -> ResourceState:
        deadline = time.monotonic() + min(within, 0.5)
        with self.wires.changed:
            while not predicate(self.resources.get(resource)):
                if cancel is not None and cancel.is_set():
                    raise TaskCancelled(by="")
                if time.monotonic() >= deadline:
                    raise DeadlinePassed(what=f"what is waited for of {resource}", seconds=within, why="no event.")
                self.wires.changed.wait(0.02)
            return self.resources.get(resource) or ResourceState(name=resource)

    def device_size(self, minor: int) -> int:
        """What /sys says; no event does."""
        found = [name for name, state in self.resources.items() if state.minor == minor]
        return self.device_sizes[found[0]] if found else 0

    def _known(self, name: str) -> ResourceState:
        if name not in self.resources:
            raise CommandFailed(program="drbdadm", status=10, output="unknown resource")
        return self.resources[name]

    def _volume(self, path: str) -> int:
        return self._volumes().size(path.rpartition("/")[2])
