"""A node with a real store, journal and tasks, over simulated volumes (or real directories), and what dies with it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from mcvirt.errors import Conflict, McvirtError
from mcvirt.types.storage import BackendSpec, BackendType
from mcvirt.types.task import ENDED, TaskInfo
from mcvirtd.state.records import BackendRecord, DiskRecord, NodeRecord, VmRecord
from mcvirtd.state.store import Change, Store
from mcvirtd.storage.backends import BackendsOnNode, LocalBackends
from mcvirtd.storage.disks import Disks
from mcvirtd.storage.file_volumes import FileVolumes
from mcvirtd.storage.hard_drives import HardDriveService
from mcvirtd.storage.service import StorageService
from mcvirtd.storage.simulated_volumes import SimulatedVolumes
from mcvirtd.storage.volumes import Volumes
from mcvirtd.tasks.engine import Tasks
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.transaction import Journal, Transaction

WITHIN = 20.0


class Places:
    """The storage of one node: simulated volumes at each location that was made, and real directories elsewhere."""

    def __init__(self) -> None:
        self.simulated: dict[str, SimulatedVolumes] = {}

    def make(self, location: str) -> SimulatedVolumes:
        made = self.simulated[location] = SimulatedVolumes(location)
        return made

    def open(self, backend: BackendRecord, location: str) -> Volumes:
        if location in self.simulated:
            return self.simulated[location]
        if backend.type is BackendType.LVM:
            missing = SimulatedVolumes(location)
            missing.faults = [f"There is no volume group '{location}' on this node."]
            return missing
        return FileVolumes(location, backend.format.value, guests_user=None)


class Attachments:
    """Attaches by records alone; *refusal* is raised by the check, *failure* by attaching."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.refusal: McvirtError | None = None
        self.failure: McvirtError | None = None

    def check_attach(self, name: str, disk: DiskRecord | None = None) -> None:
        if self.refusal is not None:
            raise self.refusal

    def attach(self, disk_id: str, name: str) -> None:
        self.check_attach(name)
        with self._store.change() as change:
            change.edit(DiskRecord, disk_id, vm=name, slot=self._slot(name))

    def attach_new(self, tx: Transaction, disk: DiskRecord, name: str) -> DiskRecord:
        if self.failure is not None:
            raise self.failure
        return msgspec.structs.replace(disk, vm=name, slot=self._slot(name))

    def commit_attached(self, change: Change, disk: DiskRecord) -> None:
        pass

    def detach(self, disk_id: str) -> None:
        with self._store.change() as change:
            change.edit(DiskRecord, disk_id, vm=None, slot=None)

    def _slot(self, name: str) -> int:
        return 1 + sum(disk.vm == name for disk in self._store.all(DiskRecord).values())


class World:
    """A process of mcvirtd's: all that is lost when it dies, on *directory*, which is not."""

    def __init__(self, directory: Path, places: dict[str, Places] | None = None) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir(exist_ok=True)
        self.places = places or {"n1": Places(), "n2": Places()}
        self.here = self.places["n1"]
        self.store = Store(self.state / "state.db")
        self.journal = Journal(self.store)
        self.locks = Locks()
        self.tasks = Tasks(self.store, self.journal, "n1")
        self.used: set[str] = set()
        self.away: set[str] = set()
        self.disks = self.make_disks()
        self.storage = StorageService(
            store=self.store, journal=self.journal, locks=self.locks, nodes=self.node, node="n1"
        )
        self.attachments = Attachments(self.store)
        self.drives = HardDriveService(
            store=self.store,
            journal=self.journal,
            locks=self.locks,
            disks=self.disks,
            attachments=self.attachments,
            node="n1",
        )
        if self.store.get(NodeRecord, "n1") is None:
            self.put(NodeRecord(name="n1", id="n1"))

    def make_disks(self) -> Disks:
        return Disks(
            store=self.store,
            journal=self.journal,
            locks=self.locks,
            nodes=self.node,
            node="n1",
            used_paths=lambda: self.used,
        )

    def node(self, name: str) -> BackendsOnNode:
        if name in self.away:
            raise Conflict(text=f"{name} is away.")
        return LocalBackends(name, self.state, open_volumes=self.places[name].open)

    def put(self, *records: NodeRecord | VmRecord | DiskRecord | BackendRecord) -> None:
        with self.store.change() as change:
            for record in records:
                change.put(record)

    def vm(self, name: str, **fields: object) -> VmRecord:
        values = {"id": name, "uuid": name, "memory": 1, "cpu_count": 1, "nodes": ("n1",), "node": "n1", **fields}
        record = msgspec.convert({"name": name, **values}, VmRecord)
        self.put(record)
        return record

    def second_node(self) -> None:
        self.put(NodeRecord(name="n2", id="n2"))

    def lvm(self, name: str = "pool", group: str = "vg0", **fields: object) -> SimulatedVolumes:
        """A backend on this node, made by the service."""
        volumes = self.here.simulated.get(group) or self.here.make(group)
        self.storage.create(BackendSpec(name=name, type=BackendType.LVM, location=group, **fields))  # type: ignore[arg-type]
        return volumes

    def run(self, work: Callable[[], object]) -> TaskInfo:
        """Do *work* as a task, to its end."""

        def result() -> bytes:
            work()
            return b"null"

        task = self.tasks.start("test.work", "", "root", result, lambda *_: None)
        info = task.news(2**62, WITHIN).info
        assert info.state in ENDED
        return info

    def after_power_loss(self) -> World:
        """The next process, on a copy of the state as it is on disk at this moment, and on the same storage."""
        return World(self.copy(), self.places)

    def copy(self) -> Path:
        """A directory with the state as it is on disk at this moment."""
        copy = self.directory / f"after-{len(list(self.directory.glob('after-*')))}"
        shutil.copytree(self.state, copy / "state")
        return copy

    def journal_rows(self) -> list[tuple[str, str]]:
        return [(str(act), str(way)) for act, way in self.store.query("SELECT act, direction FROM journal")]


class Standstill:
    """Stops a verb of volumes (one object, or all of a class) before or after it is done, until it is let go."""

    def __init__(self, volumes: SimulatedVolumes | type[FileVolumes], verb: str, *, done: bool) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        original = getattr(volumes, verb)

        def stop(*args: object, **kwargs: object) -> object:
            if done:
                value = original(*args, **kwargs)
            self.reached.set()
            assert self.go.wait(WITHIN)
            return value if done else original(*args, **kwargs)

        setattr(volumes, verb, stop)
        self._restore = lambda: setattr(volumes, verb, original)

    def release(self) -> None:
        self._restore()
        self.go.set()
