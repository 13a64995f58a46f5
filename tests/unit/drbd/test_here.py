"""This node's side of DRBD, with a kernel that does what it is told: following the record, fencing, bringing up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from mcvirt.errors import CommandFailed, McvirtError, NodeUnreachable, VolumeNotFound
from mcvirt.types.drbd import ResourceState
from mcvirt.types.storage import BackendType
from mcvirt.types.vm import DiskDriver, StorageType
from mcvirtd.drbd import fencing, handler
from mcvirtd.drbd.config import MOST_RATE, Common, Resource
from mcvirtd.drbd.fencing import Fenced
from mcvirtd.drbd.here import DrbdHere
from mcvirtd.drbd.resources import handler_program
from mcvirtd.drbd.status import Progress
from mcvirtd.host import lvm
from mcvirtd.state.records import (
    BackendRecord,
    DiskRecord,
    DrbdRecord,
    NodeRecord,
    Replica,
    ReplicaClaimRecord,
    VmRecord,
)
from mcvirtd.state.store import Store

NAME, DISK = "mcvirt-hd-1", "hd-1"
SOON = 10.0


class Kernel:
    """Says what it is told, and notes what is done."""

    def __init__(self) -> None:
        self.aside: Path | None = None  # where what was there before is put
        self.lines: queue.Queue[str] = queue.Queue()
        self.done: list[str] = []
        self.fails: dict[str, McvirtError] = {}
        self.common: Common | None = None
        self.resources: dict[str, Resource] = {}
        self.with_volumes: set[str] = set()
        self.rate: int | None = None
        self.measured: Mapping[int, Progress] = {}
        self.said: list[str] = []
        self.changed = threading.Condition()

    def events(self, heard: Callable[[str], None], stop: threading.Event) -> int:
        while not stop.is_set():
            try:
                heard(self.lines.get(timeout=0.05))
            except queue.Empty:
                continue
        return 0

    def say(self, *lines: str) -> None:
        for line in lines:
            self.lines.put(line)

    def progress(self) -> Mapping[int, Progress]:
        return self.measured

    def _do(self, what: str) -> None:
        with self.changed:
            self.done.append(what)
            self.changed.notify_all()
        if what in self.fails:
            raise self.fails[what]

    def wait_done(self, what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: what in self.done, SOON), self.done

    def write_common(self, common: Common) -> Path | None:
        self.common = common
        self._do("write_common")
        return self.aside

    def restore_common(self) -> None:
        self._do("restore_common")

    def most_rate(self) -> int | None:
        return self.rate

    def unlimit_rate(self, name: str) -> None:
        self._do(f"unlimit_rate {name}")

    def write_resource(self, resource: Resource) -> None:
        self.resources[resource.name] = resource

    def remove_resource(self, name: str) -> None:
        self._do(f"remove {name}")
        del self.resources[name]

    def resource_files(self) -> tuple[str, ...]:
        return tuple(self.resources)

    def has_volumes(self, name: str) -> bool:
        return name in self.with_volumes

    def up(self, name: str) -> None:
        self._do(f"up {name}")
        self.say(f"create resource name:{name} role:Secondary suspended:no")

    def outdate(self, name: str) -> None:
        self._do(f"outdate {name}")

    def faults(self, address: str | None) -> list[str]:
        return [f"asked for {address}"] if self.said else []

    def warnings(self) -> list[str]:
        return self.said


class World:
    """One node of two, with a replicated hard drive on both."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "state.db")
        self.kernel = Kernel()
        self.answer: Fenced | McvirtError = "outdated"
        self.asked: list[tuple[str, str]] = []
        self.again: list[tuple[str, str]] = []
        self.moving: set[str] = set()
        self.told: list[tuple[dict[str, ResourceState], bool]] = []
        with self.store.change() as change:
            for number in (1, 2):
                change.put(NodeRecord(name=f"n{number}", id=f"id{number}", address=f"10.9.0.{number}"))
            change.put(
                BackendRecord(
                    name="fast", id="sb-1", type=BackendType.LVM, location="vg0", nodes={"n1": "", "n2": "other"}
                )
            )
            change.put(
                DiskRecord(
                    id=DISK,
                    volume="mcvirt-hd-1",
                    backend="fast",
                    size=1 << 30,
                    driver=DiskDriver.VIRTIO,
                    storage_type=StorageType.DRBD,
                    nodes=("n1", "n2"),
                    replica=Replica(minor=4, port=7792, secret="s" * 32),
                )
            )
        self.here = DrbdHere(
            store=self.store,
            node="n1",
            state_directory=directory / "state",
            run_directory=directory,
            prefix=Path("/usr/local/lib/mcvirt/12.0"),
            other=self._other,
            told=lambda states, at_once: self.told.append((dict(states), at_once)),
            verbs=self.kernel,
            in_use=lambda disk: disk.id not in self.moving,
        )

    def _other(self, node: str, disk: str, within: float, *, again: bool = False) -> Fenced:
        (self.again if again else self.asked).append((node, disk))
        if isinstance(self.answer, McvirtError):
            raise self.answer
        return self.answer

    def machine(self, node: str) -> None:
        """The hard drive is a machine's, which is registered on *node*."""
        with self.store.change() as change:
            change.put(VmRecord(name="web1", id="vm-1", uuid="u-1", memory=1, cpu_count=1, nodes=(), node=node))
            change.edit(DiskRecord, DISK, vm="web1", slot=1)

    def fence_again(self) -> list[tuple[str, str]]:
        """Who was asked, when that has been done once."""
        self.again.clear()
        self.here.fence_again()
        deadline = time.monotonic() + SOON
        while any(thread.name == "fence" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        return self.again

    def enable(self) -> None:
        with self.store.change() as change:
            change.put(DrbdRecord(enabled=True))

    def ring(self, event: str) -> int | None:
        directory = str(self.here.spool.directory)
        handler.keep(directory, {"event": event, "resource": NAME, "at": 1.0})
        return handler.tell(str(Path(self.here.common.socket)), {"event": event, "resource": NAME}, SOON)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(lvm, "activate", lambda group, name: f"/dev/{group}/{name}")
    monkeypatch.setattr(fencing, "CUT_WITHIN", 0.1)
    made = World(tmp_path)
    yield made
    made.here.stop()
    made.store.close()


def up(*more: str) -> list[str]:
    return [f"exists resource name:{NAME} role:Secondary suspended:no", *more, "exists -"]


CONNECTED = (
    f"exists connection name:{NAME} connection:Connected role:Secondary",
    f"exists device name:{NAME} minor:4 disk:UpToDate size:1024",
    f"exists peer-device name:{NAME} replication:Established peer-disk:UpToDate out-of-sync:0",
)


def test_nothing_is_begun_before_drbd_is_enabled(world: World) -> None:
    world.here.start()
    assert world.kernel.done == []
    assert not Path(world.here.common.socket).exists()
    world.enable()
    world.kernel.wait_done("write_common")
    world.kernel.say("exists -")
    world.kernel.wait_done(f"up {NAME}")


def test_what_is_down_is_brought_up_with_a_file_that_follows_the_records(world: World) -> None:
    world.enable()
    world.here.start()
    world.kernel.say("exists -")
    world.kernel.wait_done(f"up {NAME}")
    made = world.kernel.resources[NAME]
    assert (made.minor, made.port, made.secret) == (4, 7792, "s" * 32)
    assert (made.local.node, made.local.address) == ("n1", "10.9.0.1")
    assert made.local.data == "/dev/vg0/mcvirt-hd-1-drbd-raw"
    assert made.peer.metadata == "/dev/other/mcvirt-hd-1-drbd-meta"


def test_what_runs_is_adopted(world: World) -> None:
    world.enable()
    world.kernel.say(*up(*CONNECTED))
    world.here.start()
    state = world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    assert state.both_good
    world.here.settle()
    assert world.kernel.done == ["write_common"] * len(world.kernel.done)


@pytest.mark.parametrize(("before", "new"), [(None, False), (MOST_RATE, False), (MOST_RATE * 2, True)])
def test_what_runs_gets_the_rate_of_the_settings_where_that_is_another(
    world: World, before: int | None, new: bool
) -> None:
    world.kernel.rate = before
    world.enable()
    world.kernel.say(*up(*CONNECTED))
    world.here.start()
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    settled(world)
    assert world.kernel.common is not None and world.kernel.common.most_rate == MOST_RATE
    assert world.kernel.done.count(f"unlimit_rate {NAME}") == new


def settled(world: World) -> None:
    """Wait for what began with the start; while that goes on, nobody else begins with the same."""
    deadline = time.monotonic() + SOON
    while any(thread.name == "drbd-settle" for thread in threading.enumerate()):  # also one that is just being started
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    world.here.settle()


def test_what_can_not_be_brought_up_is_tried_again_and_told(world: World) -> None:
    world.kernel.fails[f"up {NAME}"] = CommandFailed(program="drbdadm", status=1, output="no such device.")
    world.enable()
    world.here.start()
    world.kernel.say("exists -")
    world.kernel.wait_done(f"up {NAME}")
    world.here.reader.wait_alive(SOON)
    settled(world)
    assert "no such device" in world.here.faults[NAME]
    world.kernel.fails.clear()
    world.here.settle()
    assert world.here.faults == {}


def test_of_what_is_deleted_and_not_known_to_be_nothing_is_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(group: str, name: str) -> str:
        raise VolumeNotFound(name=name, location=group)

    monkeypatch.setattr(lvm, "activate", gone)
    world.enable()
    world.here.start()
    world.kernel.say("exists -")
    world.here.reader.wait_alive(SOON)
    settled(world)
    assert "mcvirt-hd-1-drbd-raw" in world.here.faults[NAME]
    assert not world.kernel.resources


def test_a_file_of_no_hard_drive_is_removed_where_there_is_nothing_else_of_it(world: World) -> None:
    world.enable()
    world.here.start()
    world.kernel.say("exists -")
    world.kernel.wait_done(f"up {NAME}")
    settled(world)
    made = world.kernel.resources[NAME]
    runs, full, claimed, gone = (f"mcvirt-hd-{word}" for word in ("runs", "full", "claimed", "gone"))
    world.kernel.resources |= dict.fromkeys((runs, full, claimed, gone), made)
    world.kernel.with_volumes = {full}
    world.kernel.say(f"create resource name:{runs} role:Secondary suspended:no")
    world.here.reader.wait(runs, lambda state: state is not None, SOON)
    with world.store.change() as change:
        claim = {"disk": "hd-claimed", "backend": "fast", "nodes": ("n1", "n2"), "coordinator": "n2"}
        change.put(ReplicaClaimRecord(minor=5, port=7793, **claim))
    world.here.settle()
    assert set(world.kernel.resources) == {NAME, runs, full, claimed}


def test_what_all_resources_have_in_common_is_written_again_where_it_was_replaced(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.enable()
    world.here.start()
    world.kernel.say("exists -")
    world.here.reader.wait_alive(SOON)
    settled(world)
    written = world.kernel.done.count("write_common")
    world.kernel.aside = Path("/etc/drbd.d/other")
    world.here.settle()
    assert world.kernel.done.count("write_common") == written + 1
    assert "theirs is in /etc/drbd.d/other" in caplog.text


def test_what_was_stored_while_this_node_was_away_is_brought_up_when_it_has_heard_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.enable()
    world.kernel.say(*up())
    world.here.start()
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    settled(world)
    disk = world.store.get(DiskRecord, DISK)
    assert disk is not None
    with world.store.change() as change:
        change.put(msgspec.structs.replace(disk, id="hd-2", replica=Replica(minor=5, port=7793, secret="s" * 32)))
    monkeypatch.setattr(world.kernel, "say", lambda *_: None)  # the event of it is late
    world.here.settle()
    world.here.settle()
    assert world.kernel.done.count("up mcvirt-hd-2") == 1 and f"up {NAME}" not in world.kernel.done


def test_what_was_made_and_is_down_already_to_be_deleted_is_not_brought_up(world: World) -> None:
    """Between two looks, on a node that had none before."""
    with world.store.change() as change:
        disk = change.get(DiskRecord, DISK)
        change.delete(DiskRecord, DISK)
    world.enable()
    world.here.start()
    world.kernel.say("exists -")
    world.here.reader.wait_alive(SOON)
    settled(world)
    assert disk is not None
    with world.store.change() as change:
        change.put(disk)
    world.kernel.say(f"create resource name:{NAME} role:Secondary suspended:no")
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    world.kernel.say(f"destroy resource name:{NAME}")
    world.here.reader.wait(NAME, lambda state: state is None, SOON)
    world.here.settle()
    assert f"up {NAME}" not in world.kernel.done


def test_a_split_ends_with_the_other_side(world: World) -> None:
    """Its node was removed for good: nobody can be split from it."""
    world.enable()
    world.kernel.say(*up())
    world.here.start()
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    settled(world)
    world.ring("split-brain")
    world.here.reader.wait(NAME, lambda state: state is not None and state.split_brain, SOON)
    with world.store.change() as change:
        change.edit(DiskRecord, DISK, nodes=("n1",))
    world.here.settle()
    state = world.here.reader.state(NAME)
    assert state is not None and not state.split_brain
    assert not world.here.spool.splits()


def test_a_resource_that_goes_down_later_is_somebodys_wish(world: World) -> None:
    world.enable()
    world.kernel.say(*up())
    world.here.start()
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    settled(world)
    world.kernel.say(f"destroy resource name:{NAME}")
    world.here.reader.wait(NAME, lambda state: state is None, SOON)
    world.here.settle()
    assert f"up {NAME}" not in world.kernel.done


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("outdated", handler.OUTDATED),
        ("primary", handler.PRIMARY),
        ("failed", handler.FAILED),
        (NodeUnreachable(node="n2", reason="off."), handler.UNREACHABLE),
    ],
)
def test_the_other_side_is_told_that_its_data_is_old(world: World, answer: Fenced | McvirtError, status: int) -> None:
    world.answer = answer
    world.enable()
    world.here.start()
    assert world.ring("fence-peer") == status
    assert world.asked == [("n2", DISK)]


def test_a_node_outdates_its_data_only_for_the_other_one_and_never_what_is_in_use(world: World) -> None:
    world.enable()
    world.here.start()
    world.kernel.say(*up())
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    assert world.here.outdate(DISK, "n3") == "failed"
    assert world.here.outdate("hd-none", "n2") == "failed"
    assert world.kernel.done.count(f"outdate {NAME}") == 0
    assert world.here.outdate(DISK, "n2") == "outdated"
    world.kernel.say(f"change resource name:{NAME} role:Primary")
    world.here.reader.wait(NAME, lambda state: state is not None and state.role == "Primary", SOON)
    assert world.here.outdate(DISK, "n2") == "primary"
    world.moving.add(DISK)  # its guest comes from n2, and is not here yet
    assert world.here.outdate(DISK, "n2") == "failed"
    assert world.kernel.done.count(f"outdate {NAME}") == 1


def test_a_side_that_is_connected_is_not_outdated(world: World) -> None:
    world.enable()
    world.here.start()
    world.kernel.say(*up(*CONNECTED))
    world.here.reader.wait(NAME, lambda state: state is not None and state.connected, SOON)
    assert world.here.outdate(DISK, "n2") == "failed"
    world.kernel.fails[f"outdate {NAME}"] = CommandFailed(program="drbdadm", status=17, output="no.")
    world.kernel.say(
        f"change connection name:{NAME} connection:Connecting", f"change peer-device name:{NAME} replication:Off"
    )
    assert world.here.outdate(DISK, "n2") == "failed"


ALONE = (
    f"change connection name:{NAME} connection:Connecting role:Unknown",
    f"change peer-device name:{NAME} replication:Off peer-disk:DUnknown",
)
CUT_OFF = NodeUnreachable(node="n2", reason="off.")


def alone(world: World, role: str = "Primary") -> None:
    """This side has lost the other one."""
    world.kernel.say(*CONNECTED_AGAIN)
    world.here.reader.wait(NAME, lambda state: state is not None and state.connected, SOON)
    world.kernel.say(f"change resource name:{NAME} role:{role}", *ALONE)
    world.here.reader.wait(
        NAME, lambda state: state is not None and state.role == role and state.peer_disk == "DUnknown", SOON
    )


CONNECTED_AGAIN = tuple(line.replace("exists ", "change ", 1) for line in CONNECTED)


@pytest.fixture
def used(world: World) -> World:
    """The machine is registered here, and its disk Primary, with the link lost."""
    world.machine("n1")
    world.enable()
    world.here.start()
    world.kernel.say(*up(*CONNECTED))
    alone(world)
    return world


def test_a_side_that_could_not_be_told_is_told_when_its_node_is_back(used: World) -> None:
    used.answer = CUT_OFF
    assert used.ring("fence-peer") == handler.UNREACHABLE
    assert used.fence_again() == [("n2", DISK)]  # and it is still away
    used.answer = "outdated"
    assert used.fence_again() == [("n2", DISK)]
    assert used.fence_again() == []


def test_a_side_that_knows_is_not_told_again_until_it_was_back(used: World) -> None:
    assert used.ring("fence-peer") == handler.OUTDATED
    assert used.fence_again() == []
    alone(used)  # it was back meanwhile, and so has all data again
    assert used.fence_again() == [("n2", DISK)]


def test_only_who_uses_a_disk_alone_tells_the_other_side(used: World) -> None:
    used.moving.add(DISK)  # and its guest is not here
    assert used.fence_again() == []
    used.moving.clear()
    used.machine("n2")
    assert used.fence_again() == []
    used.machine("n1")
    alone(used, "Secondary")
    assert used.fence_again() == []
    used.kernel.say(*CONNECTED_AGAIN, f"change resource name:{NAME} role:Primary")
    used.here.reader.wait(NAME, lambda state: state is not None and state.both_good, SOON)
    assert used.fence_again() == []


def test_two_sides_that_have_split_tell_each_other_nothing(used: World) -> None:
    used.kernel.say(
        f"call helper name:{NAME} helper:split-brain", f"change connection name:{NAME} connection:StandAlone"
    )
    used.here.reader.wait(NAME, lambda state: state is not None and state.connection == "StandAlone", SOON)
    state = used.here.reader.state(NAME)
    assert state is not None and state.split_brain
    assert used.fence_again() == []


def test_who_is_told_late_and_has_the_machine_by_now_keeps_its_data(world: World) -> None:
    world.machine("n1")
    world.enable()
    world.here.start()
    world.kernel.say(*up())
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    assert world.here.outdate(DISK, "n2", again=True) == "failed"
    assert f"outdate {NAME}" not in world.kernel.done
    world.machine("n2")
    assert world.here.outdate(DISK, "n2", again=True) == "outdated"
    assert f"outdate {NAME}" in world.kernel.done


def test_what_is_worse_than_old_need_not_be_told(world: World) -> None:
    world.enable()
    world.here.start()
    world.kernel.say(*up(f"exists device name:{NAME} minor:4 disk:Inconsistent size:1024"))
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    assert world.here.outdate(DISK, "n2", again=True) == "outdated"
    assert f"outdate {NAME}" not in world.kernel.done


def test_a_split_is_remembered_until_it_is_over(world: World) -> None:
    world.enable()
    world.here.start()
    world.kernel.say(*up(f"exists connection name:{NAME} connection:StandAlone role:Unknown"))
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    world.kernel.say(f"call helper name:{NAME} helper:split-brain")
    assert world.ring("split-brain") == 0
    assert list(world.here.spool.splits()) == [NAME]
    world.here.reader.wait(NAME, lambda state: state is not None and state.split_brain, SOON)
    world.kernel.say(f"change connection name:{NAME} connection:Connected")
    assert list(world.here.spool.splits()) == [NAME]
    world.kernel.say(
        f"change peer-device name:{NAME} replication:WFBitMapS", f"change resource name:{NAME} suspended:no"
    )
    world.here.reader.wait(NAME, lambda state: state is not None and not state.split_brain, SOON)
    world.kernel.say("exists -")
    for _ in range(100):
        if not world.here.spool.splits():
            break
        threading.Event().wait(0.05)
    assert list(world.here.spool.splits()) == []


@pytest.fixture
def alone_here(world: World) -> World:
    """The two sides do not find each other."""
    world.enable()
    world.here.start()
    world.kernel.say(*up(f"exists connection name:{NAME} connection:StandAlone role:Unknown"))
    world.here.reader.wait(NAME, lambda state: state is not None, SOON)
    settled(world)
    return world


def unkept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler program, which can't write, says that the sides have split."""
    monkeypatch.setenv("DRBD_RESOURCE", NAME)
    assert handler.main(["split-brain", "/dev/null/spool", str(world.here.common.socket)]) == 0


def is_split(world: World) -> bool:
    state = world.here.reader.state(NAME)
    return state is not None and state.split_brain


def test_a_split_that_only_the_handler_tells_is_known_and_told(alone_here: World) -> None:
    assert alone_here.ring("split-brain") == 0
    assert is_split(alone_here) and list(alone_here.here.spool.splits()) == [NAME]
    assert alone_here.told[-1][0][NAME].split_brain


def test_a_split_that_could_not_be_written_down_is_known(alone_here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    unkept(alone_here, monkeypatch)
    assert is_split(alone_here) and list(alone_here.here.spool.splits()) == [NAME]


def test_while_the_disk_is_full_a_split_is_known_and_it_is_remembered_when_there_is_room(
    alone_here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(alone_here.here.spool, "split", lambda resource: (_ for _ in ()).throw(OSError(28, "full")))
        unkept(alone_here, monkeypatch)
        assert is_split(alone_here) and list(alone_here.here.spool.splits()) == []
    alone_here.here.settle()
    assert list(alone_here.here.spool.splits()) == [NAME]


def test_a_split_is_not_forgotten_because_something_else_happens(alone_here: World) -> None:
    alone_here.ring("split-brain")
    reader = alone_here.here.reader
    alone_here.kernel.say(f"destroy resource name:{NAME}")
    reader.wait(NAME, lambda state: state is None, SOON)
    alone_here.kernel.say(
        f"create resource name:{NAME} role:Secondary suspended:no",
        f"create connection name:{NAME} connection:Connecting role:Unknown",
    )
    reader.wait(NAME, lambda state: state is not None and state.connection == "Connecting", SOON)
    assert is_split(alone_here) and list(alone_here.here.spool.splits()) == [NAME]


def test_a_split_that_is_over_when_it_is_written_down_is_not_remembered(
    alone_here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, spool = alone_here.here.reader, alone_here.here.spool
    remember = spool.split

    def late(resource: str) -> None:
        alone_here.kernel.say(*CONNECTED)
        reader.wait(NAME, lambda state: state is not None and state.both_good, SOON)
        remember(resource)

    monkeypatch.setattr(spool, "split", late)
    alone_here.ring("split-brain")
    assert not is_split(alone_here) and list(spool.splits()) == []


def test_a_split_goes_with_the_hard_drive(alone_here: World) -> None:
    alone_here.ring("split-brain")
    alone_here.here.settle()
    assert list(alone_here.here.spool.splits()) == [NAME]
    with alone_here.store.change() as change:
        change.delete(DiskRecord, DISK)
    alone_here.here.settle()
    assert list(alone_here.here.spool.splits()) == [NAME], "the kernel has it still"
    alone_here.kernel.say(f"destroy resource name:{NAME}")
    alone_here.here.reader.wait(NAME, lambda state: state is None, SOON)
    alone_here.here.settle()
    assert list(alone_here.here.spool.splits()) == []


def test_a_split_that_came_while_the_daemon_was_away_is_known(world: World) -> None:
    world.here.spool.prepare()
    handler.keep(str(world.here.spool.directory), {"event": "split-brain", "resource": NAME, "at": 1.0})
    world.enable()
    world.kernel.say(*up())
    world.here.start()
    assert world.here.reader.wait(NAME, lambda state: state is not None, SOON).split_brain


def test_others_are_told_at_once_of_events_and_now_and_then_of_progress(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcvirtd.drbd.here.MEASURE_EVERY", 0.01)
    world.enable()
    world.kernel.measured = {4: Progress(out_of_sync=4096, done=12.5, seconds_left=9)}
    world.here.start()
    world.kernel.say(*up(*CONNECTED), f"change peer-device name:{NAME} replication:VerifyS")
    state = world.here.reader.wait(NAME, lambda state: state is not None and state.done == 12.5, SOON)
    assert (state.seconds_left, state.out_of_sync, state.checking) == (9, 4096, True)
    world.kernel.say(f"change peer-device name:{NAME} replication:Established out-of-sync:4")
    state = world.here.reader.wait(NAME, lambda state: state is not None and not state.checking, SOON)
    assert (state.done, state.seconds_left, state.out_of_sync) == (None, None, 4096)
    assert {at_once for _, at_once in world.told} == {True, False}


def test_what_keeps_a_node_from_replicating_is_all_said(world: World) -> None:
    world.kernel.said = ["LVM looks."]
    outlook = world.here.outlook()
    assert outlook.faults[0] == "asked for 10.9.0.1"
    assert "mcvirt-drbd-handler is missing" in outlook.faults[1]
    assert outlook.warnings == ("LVM looks.",)
    with world.store.change() as change:
        change.put(NodeRecord(name="n1", id="id1"))
    assert "has no cluster address" in " ".join(world.here.outlook().faults)


def test_preparing_is_undone_unless_it_came_true(world: World) -> None:
    world.here.prepare()
    world.here.unprepare()
    assert world.kernel.done == ["write_common", "restore_common"]
    world.enable()
    world.here.unprepare()
    assert world.kernel.done.count("restore_common") == 1


def test_handlers_are_those_of_the_installation_in_use(tmp_path: Path) -> None:
    release = tmp_path / "12.0-1"
    release.mkdir()
    assert handler_program(release) == f"{release}/bin/mcvirt-drbd-handler"
    (tmp_path / "current").symlink_to("12.0-1")
    assert handler_program(release) == f"{tmp_path}/current/bin/mcvirt-drbd-handler"
