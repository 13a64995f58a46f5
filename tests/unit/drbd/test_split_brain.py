"""Split brains: what is refused, what is set aside, and what a failure or a crash leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcvirt.errors import (
    BadArgument,
    Busy,
    CommandFailed,
    Conflict,
    McvirtError,
    NodeUnreachable,
    NoSpace,
    NotFound,
    UndoIncomplete,
)
from mcvirt.types.drbd import DrbdInfo, DrbdLeg, ResourceState
from mcvirt.types.task import TaskInfo
from mcvirtd.drbd import discarding, split_brain
from mcvirtd.drbd.config import resource_name
from mcvirtd.drbd.reader import Reader
from mcvirtd.drbd.split_brain import SplitBrain
from mcvirtd.drbd.split_sides import SplitPeer
from mcvirtd.drbd.status import Progress
from mcvirtd.drbd.verifications import difference
from mcvirtd.state.records import DiskRecord, SplitUndoRecord, VmRecord
from mcvirtd.state.store import Store
from mcvirtd.storage.backends import aside_volume
from mcvirtd.tasks.locks import Locks
from mcvirtd.tasks.task import Task, working_for
from mcvirtd.tasks.transaction import Journal
from tests.unit.drbd.recorded import Kernel as Recorded
from tests.unit.drbd.recorded import existing
from tests.unit.drbd.test_verification import IDS, SIZE, disk_record

DISK, NAME = IDS[0], f"mcvirt-{IDS[0]}"
SECOND = f"mcvirt-{IDS[1]}"


class Kernel(Recorded):
    """Two sides in memory: this node's data are *mine*, and the other's come when it gives way."""

    def primary(self, name: str, *, force: bool = False) -> None:
        self._do("primary", name, " by force" if force else "")

    def secondary(self, name: str) -> None:
        self._do("secondary", name)

    def progress(self) -> Mapping[int, Progress]:
        return {1: Progress(out_of_sync=8192)}


class Asides:
    """Snapshots by name."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.failing: McvirtError | None = None
        self.stuck: McvirtError | None = None
        self.room = 8

    def make(self, disk: DiskRecord, progress: Callable[[int, int], None] | None = None) -> None:
        if self.failing:
            raise self.failing
        self.kept = [disk.id]

    def drop(self, disk: DiskRecord) -> None:
        if self.stuck:
            raise self.stuck
        self.kept = [kept for kept in self.kept if kept != disk.id]

    def check_room(self, disks: Sequence[DiskRecord]) -> None:
        if len(disks) > self.room:
            raise NoSpace(backend="vg0", node="n2", free="1 GiB", needed=f"room for {len(disks)}")

    def length(self, disk: DiskRecord) -> int | None:
        return SIZE if disk.id in self.kept else None

    def path(self, disk: DiskRecord) -> Path:
        return Path("/dev/vg0") / disk.volume


class World:
    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "state.db")
        self.journal = Journal(self.store)
        self.kernel = Kernel()
        self.reader = Reader(self.kernel.source)
        self.asides = Asides()
        self.asked: list[tuple[str, str]] = []
        self.checked: list[tuple[str, str, list[str]]] = []
        self.answers: dict[str, McvirtError] = {}
        self.errands: list[tuple[str, str]] = []
        self.other = ResourceState(name=NAME, connection="StandAlone", split_brain=True, out_of_sync=4096)
        self.silent: int | None = None
        self.meets = True
        self.locks = Locks()
        self.service = SplitBrain(
            store=self.store,
            journal=self.journal,
            locks=self.locks,
            node="n2",
            kernel=self.kernel,
            reader=self.reader,
            asides=self.asides,
            info=self.info,
            errands=self,
            ask=self.ask,
        )
        with self.store.change() as change:
            change.put(VmRecord(name="web1", id="vm-1", uuid="u", memory=1, cpu_count=1, nodes=("n1", "n2")))
            change.put(disk_record(0))
        self.kernel.say(*existing(NAME), "exists -")
        self.reader.start()
        assert self.reader.wait_alive(10)

    def split(self, name: str = NAME) -> World:
        self.kernel.say(
            f"change connection name:{name} connection:StandAlone role:Unknown",
            f"call helper name:{name} helper:split-brain",
            f"change peer-device name:{name} volume:0 replication:Off peer-disk:DUnknown out-of-sync:8",
        )
        self.reader.wait(name, lambda state: state is not None and state.out_of_sync > 0, 10)
        return self

    def second_disk(self) -> None:
        with self.store.change() as change:
            change.put(disk_record(1))
        self.kernel.say(*existing(SECOND, minor=2))
        self.reader.wait(SECOND, lambda state: state is not None and state.both_good, 10)

    def put_kept(self, disk: str, node: str) -> None:
        """Data of an earlier split of *disk* is kept on *node*."""
        other = "n1" if node == "n2" else "n2"
        with self.store.change() as change:
            change.put(SplitUndoRecord(disk=disk, node=node, kept=other, made=datetime.now(UTC), by="bob", done=True))

    def info(self, disk: DiskRecord) -> DrbdInfo:
        legs = (
            DrbdLeg(node="n1", state=self.other, age=self.silent),
            DrbdLeg(node="n2", state=self.reader.state(resource_name(disk.id))),
        )
        return DrbdInfo(disk=disk.id, vm="web1", slot=disk.slot, resource=NAME, minor=1, port=7789, legs=legs)

    def ask(self, node: str, operation: str, arguments: dict[str, Any], within: float) -> msgspec.Raw:
        assert within > 0
        if operation.startswith("may_"):
            self.checked.append((node, operation, arguments["disks"]))
            if operation in self.answers:
                raise self.answers[operation]
            return msgspec.Raw(b"null")
        assert set(arguments) == {"disk"} and arguments["disk"] in IDS
        self.asked.append((node, operation))
        if operation in self.answers:
            raise self.answers[operation]
        if operation == "meet" and self.meets:
            self.kernel.say(
                f"change connection name:{NAME} connection:Connected role:Secondary",
                f"change peer-device name:{NAME} volume:0 replication:SyncTarget peer-disk:UpToDate out-of-sync:12",
                f"change peer-device name:{NAME} volume:0 replication:Established peer-disk:UpToDate out-of-sync:0",
            )
        self.ask_more()
        return msgspec.Raw(b"4096" if operation == "written" else b"null")

    def ask_more(self) -> None:
        """What a test has happen while the other node is asked."""

    def run(
        self, node: str, operation: str, arguments: dict[str, Any], heard: Callable[[TaskInfo], None]
    ) -> msgspec.Raw:
        self.errands.append((node, operation))
        self.ask_more()
        return msgspec.Raw(b"null")

    def undo(self) -> SplitUndoRecord | None:
        return self.store.get(SplitUndoRecord, DISK)

    def put_other_chosen(self, node: str) -> None:
        with self.store.change() as change:
            change.put(SplitUndoRecord(disk=DISK, node=node, kept="n2", made=datetime.now(UTC), by="bob"))

    def put_undo(self, **fields: Any) -> None:
        act(lambda: self.service.give_way(DISK, "n2"))
        with self.store.change() as change:
            change.edit(SplitUndoRecord, DISK, **fields)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.reader.stop()
    made.store.close()


def act(call: Callable[[], object]) -> Task:
    task = Task("split_brain.resolve", "web1", "alice", "n2")
    with working_for(task):
        call()
    return task


def error(call: Callable[[], object]) -> McvirtError:
    with pytest.raises(McvirtError) as raised:
        act(call)
    return raised.value


def test_a_split_shows_what_each_side_has_written(world: World) -> None:
    (shown,) = world.split().service.show("web1")
    assert shown.split and [(side.node, side.written) for side in shown.sides] == [("n1", 4096), ("n2", 8192)]
    assert world.kernel.commands == []
    world.answers["written"] = NodeUnreachable(node="n1", reason="it is off.")
    assert [side.written for side in world.service.show()[0].sides] == [None, 8192]


def test_the_side_that_gives_way_is_set_aside_first(world: World) -> None:
    world.split()
    act(lambda: world.service.resolve("web1", "n1"))
    assert world.asides.kept == [DISK]
    assert world.kernel.commands == [f"connect {NAME} discarding"]
    assert ("n1", "meet") in world.asked
    record = world.undo()
    assert record is not None and (record.node, record.kept, record.done) == ("n2", "n1", True)
    assert world.journal.due() == {}


def test_the_other_node_gives_way_there(world: World) -> None:
    world.split()
    act(lambda: world.service.resolve("web1", "n2"))
    assert world.errands == [("n1", "split_brain.give_way")] and world.kernel.commands == []


def peer_of(world: World) -> SplitPeer:
    """What the node answers others."""
    return SplitPeer(
        store=world.store,
        node="n2",
        kernel=world.kernel,
        reader=world.reader,
        asides=world.asides,
        checks=world.service.checks,
    )


def test_of_several_disks_none_gives_way_where_one_may_not(world: World) -> None:
    world.second_disk()
    world.split().split(SECOND)
    world.put_kept(IDS[1], "n2")
    raised = error(lambda: world.service.resolve("web1", "n1"))
    assert isinstance(raised, Conflict) and "earlier split" in str(raised) and IDS[1] in str(raised)
    assert world.kernel.commands == [] and world.asides.kept == [] and world.undo() is None


def test_all_that_stands_against_resolving_is_said_and_room_is_needed_for_all(world: World) -> None:
    world.second_disk()
    world.split().split(SECOND)
    world.put_kept(IDS[1], "n2")
    runs(world)
    world.asides.room = 1
    raised = str(error(lambda: world.service.resolve("web1", "n1")))
    assert "whose data would be discarded" in raised and "earlier split" in raised and "room for 2" in raised
    with pytest.raises(McvirtError) as there:
        peer_of(world).may_give_way((DISK, IDS[1]))
    assert str(there.value) == raised
    assert world.kernel.commands == []


def test_the_other_node_is_asked_about_all_disks_before_one_gives_way_there(world: World) -> None:
    world.second_disk()
    world.split().split(SECOND)
    world.answers["may_give_way"] = Conflict(text="no.")
    error(lambda: world.service.resolve("web1", "n2"))
    assert world.checked == [("n1", "may_give_way", [DISK, IDS[1]])] and world.errands == []


def test_of_several_disks_none_is_taken_back_where_one_may_not_be(world: World) -> None:
    world.second_disk()
    world.put_kept(DISK, "n2")
    world.put_kept(IDS[1], "n2")
    world.asides.kept = [DISK]
    assert "is gone" in str(error(lambda: world.service.undo("web1")))
    assert world.kernel.commands == [] and world.errands == []
    world.asides.kept = [DISK, IDS[1]]
    world.answers["may_set_aside"] = NoSpace(backend="vg0", node="n1", free="1 GiB", needed="more")
    assert isinstance(error(lambda: world.service.undo("web1")), NoSpace)
    assert world.checked[-1] == ("n1", "may_set_aside", [DISK, IDS[1]])
    assert world.kernel.commands == [] and world.errands == []


def test_a_side_is_asked_whether_it_can_be_set_aside_before_anything_is_taken_back(world: World) -> None:
    world.put_kept(DISK, "n1")
    peer = peer_of(world)
    peer.may_set_aside((DISK,))
    world.asides.room = 0
    with pytest.raises(NoSpace):
        peer.may_set_aside((DISK,))
    with pytest.raises(NotFound):
        peer.may_take_back((DISK,))
    runs(world)
    with pytest.raises(McvirtError, match="its machine runs"):
        peer.may_set_aside((DISK,))
    assert world.kernel.commands == [] and world.asides.kept == []


def test_of_a_hard_drive_that_no_machine_has_it_is_said_what_can_be_done(world: World) -> None:
    world.split()
    world.put_kept(DISK, "n2")
    with world.store.change() as change:
        change.edit(DiskRecord, DISK, vm=None, slot=None)
    said = str(error(lambda: world.service.give_way(DISK, "n2")))
    assert "None" not in said and f"split-brain forget {DISK}" in said
    with world.store.change() as change:
        change.edit(SplitUndoRecord, DISK, taking=True)
    assert f"resolve --undo {DISK}" in difference(world.store, msgspec.structs.replace(disk_record(0), vm=None))


def test_a_hard_drive_that_no_machine_has_is_resolved_and_taken_back_by_its_id(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_brain.content, "restore", lambda source, target, length, progress: None)
    world.second_disk()
    world.split()
    with world.store.change() as change:
        change.edit(DiskRecord, DISK, vm=None, slot=None)
    assert isinstance(error(lambda: world.service.resolve(DISK, "n3")), BadArgument)
    act(lambda: world.service.resolve(DISK, "n1"))
    assert world.asides.kept == [DISK]
    world.other = ResourceState(name=NAME, connection="Connected")
    assert [shown.disk for shown in world.service.show(DISK)] == [DISK]
    assert str(error(lambda: world.service.resolve(DISK, "n1"))) == f"Hard drive {DISK} is not split."
    act(lambda: world.service.undo(DISK))
    record = world.undo()
    assert record is not None and record.node == "n1"
    assert str(error(lambda: world.service.undo(IDS[1]))) == f"Nothing was set aside of hard drive {IDS[1]}."
    lonely(world)
    said = str(error(lambda: world.service.undo(DISK)))
    assert "None" not in said and f"hard-drive attach {DISK} NAME" in said and f"forget {DISK}" in said


def test_an_undo_by_the_id_of_a_hard_drive_begins_anew_for_its_machine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_undone(world, monkeypatch)
    monkeypatch.setattr(world, "ask_more", lambda: world.put_kept(DISK, "n2"))
    act(lambda: world.service.undo(DISK))
    world.errands.clear()
    world.asides.kept = [DISK, IDS[1]]
    act(lambda: world.service.undo("web1"))
    assert len(world.errands) == 2


def first_chosen(world: World) -> None:
    """The other side was to give way, and is set aside on its node; that was broken off."""
    world.split()
    world.put_other_chosen("n1")


def test_the_copy_of_a_side_that_is_kept_after_all_goes(world: World) -> None:
    first_chosen(world)
    act(lambda: world.service.give_way(DISK, "n2"))
    assert world.asked[-1] == ("n1", "drop_aside")
    record = world.undo()
    assert record is not None and (record.node, record.done) == ("n2", True)
    assert world.journal.due() == {}


def test_it_stays_until_the_other_side_has_given_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discarding, "MEET_WITHIN", 0.1)
    first_chosen(world)
    world.meets = False
    task = Task("split_brain.resolve", "web1", "alice", "n2")
    with working_for(task), pytest.raises(McvirtError):
        world.service.give_way(DISK, "n2")
    assert ("n1", "drop_aside") not in world.asked
    with working_for(task):
        (left,) = (text for text in world.journal.settle(task.id) if "drop_earlier" in text)
    assert "is kept until its split is resolved" in left and ("n1", "drop_aside") not in world.asked
    world.put_other_chosen("n1")  # and is wanted again
    with working_for(task):
        assert not [text for text in world.journal.settle(task.id) if "drop_earlier" in text]
    assert ("n1", "drop_aside") not in world.asked


def test_a_node_that_can_not_be_asked_then_is_asked_later(world: World) -> None:
    first_chosen(world)
    world.answers["drop_aside"] = NodeUnreachable(node="n1", reason="it is off.")
    task = act(lambda: world.service.give_way(DISK, "n2"))
    assert world.journal.due() == {task.id: ["redo"]}
    world.answers.clear()
    with working_for(task):
        assert world.journal.settle(task.id) == []
    assert world.asked[-1] == ("n1", "drop_aside") and world.journal.due() == {}


def test_a_node_does_not_delete_what_its_records_want(world: World) -> None:
    act(lambda: world.split().service.give_way(DISK, "n2"))
    peer = peer_of(world)
    with pytest.raises(Conflict, match="is wanted"):
        peer.drop_aside(DISK)
    assert world.asides.kept == [DISK]


def test_without_a_copy_nothing_is_discarded(world: World) -> None:
    world.split().asides.failing = CommandFailed(program="lvcreate", status=5, output="no space.")
    error(lambda: world.service.resolve("web1", "n1"))
    assert world.kernel.commands == [] and world.undo() is None and world.journal.due() == {}


def test_a_side_that_is_alone_does_not_stay_ready_to_discard(world: World) -> None:
    world.split().answers["meet"] = NodeUnreachable(node="n1", reason="it is off.")
    error(lambda: world.service.resolve("web1", "n1"))
    assert world.kernel.commands == [f"connect {NAME} discarding", f"disconnect {NAME}"]
    assert world.asides.kept == [DISK]


@pytest.mark.parametrize("ending", ["deadline", "cancel", "crash"])
def test_a_side_that_waits_no_more_is_not_ready_to_discard(
    world: World, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    world.split().meets = False
    monkeypatch.setattr(discarding, "MEET_WITHIN", 0.05 if ending == "deadline" else 10.0)
    task = Task("split_brain.give_way", DISK, "alice", "n2")
    if ending == "cancel":
        world.kernel.follows["connect"] = []
        monkeypatch.setattr(world, "ask_more", lambda: task.cancel("alice"))
    if ending == "crash":
        monkeypatch.setattr(world.journal, "run", lambda act, arguments: (_ for _ in ()).throw(Conflict(text="died")))
        monkeypatch.setattr(world, "ask_more", lambda: (_ for _ in ()).throw(Conflict(text="died")))
    with working_for(task), pytest.raises(McvirtError):
        world.service.give_way(DISK, "n2")
    if ending == "crash":
        assert world.kernel.commands == [f"connect {NAME} discarding"]
        monkeypatch.undo()
        assert world.journal.settle(task.id) == []
    assert world.kernel.commands == [f"connect {NAME} discarding", f"disconnect {NAME}"]
    record = world.undo()
    assert record is not None and not record.done and world.asides.kept == [DISK]


def test_a_side_is_made_safe_before_anything_is_read_or_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of mcvirtd, with the leader away."""
    world.split()
    world.kernel.say(f"change connection name:{NAME} connection:Connecting role:Unknown")
    world.reader.stop()
    world.reader._complete = False
    waited: list[float] = []
    monkeypatch.setattr(world.reader, "wait_alive", waited.append)
    task = act(lambda: world.journal.add(0, "undo", discarding.DISARM, {"resource": NAME}))
    act(lambda: world.journal.add(0, "undo", split_brain.DEMOTE, {"resource": NAME}))
    assert world.journal.due(alone=True) == world.journal.due()
    for each in world.journal.due():
        assert world.journal.settle(each, alone=True) == []
    assert world.kernel.commands == [f"disconnect {NAME}"]
    assert waited == [] and task.id not in world.journal.due()


def test_what_is_set_aside_is_not_forgotten_while_it_may_be_needed(world: World) -> None:
    world.split()
    world.put_undo(done=False)
    world.kernel.say(
        f"change connection name:{NAME} connection:Connecting role:Unknown",
        f"change peer-device name:{NAME} volume:0 replication:Off peer-disk:DUnknown",
    )
    world.reader.wait(NAME, lambda state: state is not None and state.connection == "Connecting", 10)
    assert "can't be deleted yet" in str(error(lambda: world.service.forget("web1")))
    assert world.asides.kept == [DISK] and world.undo() is not None
    world.kernel.say(f"change connection name:{NAME} connection:StandAlone role:Unknown")
    world.reader.wait(NAME, lambda state: state is not None and state.connection == "StandAlone", 10)
    act(lambda: world.service.forget("web1"))
    assert world.asides.kept == [] and world.undo() is None


@pytest.mark.parametrize("reason", ["running", "silent", "earlier"])
def test_what_would_lose_data_is_refused(world: World, reason: str) -> None:
    if reason == "earlier":
        world.split()
        world.put_undo(done=True)
        world.kernel.commands.clear()
    world.split()
    if reason == "running":
        world.kernel.say(f"change resource name:{NAME} role:Primary")
        world.reader.wait(NAME, lambda state: state is not None and state.role == "Primary", 10)
    if reason == "silent":
        world.silent = 7
    raised = error(lambda: world.service.resolve("web1", "n1"))
    wanted = {"running": "whose data would be discarded", "silent": "does not answer", "earlier": "earlier split"}
    assert isinstance(raised, Conflict) and wanted[reason] in str(raised)
    assert world.kernel.commands == []


def test_what_is_not_split_or_not_there_is_refused(world: World) -> None:
    world.other = ResourceState(name=NAME, connection="Connected")
    assert "No hard drive" in str(error(lambda: world.service.resolve("web1", "n1")))
    assert isinstance(error(lambda: world.service.undo("web1")), Conflict)
    assert isinstance(error(lambda: world.service.drop(DISK, "n2")), NotFound)
    assert isinstance(error(lambda: world.service.give_way(DISK, "n1")), BadArgument)
    world.split()
    assert isinstance(error(lambda: world.service.resolve("web1", "n3")), BadArgument)


def lonely(world: World, disk: str = DISK) -> World:
    """The node that had its other side was removed."""
    with world.store.change() as change:
        change.edit(DiskRecord, disk, nodes=("n2",))
    return world


@pytest.mark.parametrize("keep", ["n1", "n2"])
def test_of_a_hard_drive_with_one_side_it_is_said_that_there_is_no_other(world: World, keep: str) -> None:
    raised = error(lambda: lonely(world.split()).service.resolve("web1", keep))
    assert isinstance(raised, Conflict) and "No hard drive of virtual machine 'web1' is split." in str(raised)
    assert "one side only, on node 'n2'" in str(raised) and "move --destination-node NODE web1" in str(raised)
    given = str(error(lambda: world.service.give_way(DISK, "n2")))
    assert "one side only, on node 'n2'" in given and "''" not in given
    assert world.kernel.commands == []


def test_a_hard_drive_with_one_side_keeps_no_other_from_being_resolved(world: World) -> None:
    world.second_disk()
    lonely(world.split().split(SECOND), IDS[1])
    act(lambda: world.service.resolve("web1", "n1"))
    assert world.kernel.commands == [f"connect {NAME} discarding"]


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_of_one_side_what_was_set_aside_can_only_be_forgotten(world: World, node: str) -> None:
    world.put_kept(DISK, node)
    raised = str(error(lambda: lonely(world).service.undo("web1")))
    assert "one side only, on node 'n2'" in raised and f"split-brain forget {DISK}" in raised
    assert world.checked == [] and world.errands == []
    act(lambda: world.service.forget("web1"))  # what a node had that was removed is nobody's any more
    assert world.undo() is None and world.errands == []


def test_what_is_of_two_pasts_stays_so_though_the_rest_is_gone(world: World) -> None:
    world.put_kept(DISK, "n1")
    with world.store.change() as change:
        change.edit(SplitUndoRecord, DISK, taking=True, mixed=True)
    raised = str(error(lambda: lonely(world).service.forget("web1")))
    assert "two pasts" in raised and "'n1'" in raised
    record = world.undo()
    assert record is not None and record.taking


def test_of_one_side_that_is_half_taken_back_the_only_whole_copy_is_named_and_not_forgotten(world: World) -> None:
    world.put_kept(DISK, "n2")
    with world.store.change() as change:
        change.edit(SplitUndoRecord, DISK, taking=True, mixed=True)
    raised = str(error(lambda: lonely(world).service.undo("web1")))
    assert "forget" not in raised and aside_volume(disk_record(0).volume) in raised and "'n2'" in raised
    record = world.store.get(DiskRecord, DISK)
    assert record is not None and "--undo" not in difference(world.store, record)


def test_a_crash_while_it_copies_is_noted_when_it_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.split()
    monkeypatch.setattr(world.service.discarding, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    task = Task("split_brain.give_way", DISK, "alice", "n2")
    with working_for(task), pytest.raises(KeyboardInterrupt):
        world.service.give_way(DISK, "n2")
    world.other = ResourceState(name=NAME, connection="Connected")
    world.kernel.say(
        f"change connection name:{NAME} connection:Connected role:Secondary",
        f"change peer-device name:{NAME} volume:0 replication:SyncTarget peer-disk:UpToDate out-of-sync:12",
    )
    world.reader.wait(NAME, lambda state: state is not None and state.copying, 10)
    assert "still being copied" in world.journal.settle(task.id)[0]
    world.kernel.say(f"change peer-device name:{NAME} volume:0 replication:Established out-of-sync:0")
    world.reader.wait(NAME, lambda state: state is not None and not state.copying, 10)
    assert world.journal.settle(task.id) == []
    record = world.undo()
    assert record is not None and record.done


def test_taking_back_sets_the_present_aside_and_writes_through_drbd(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: list[tuple[Path, Path]] = []
    monkeypatch.setattr(
        split_brain.content, "restore", lambda source, target, length, progress: restored.append((source, target))
    )
    world.split()
    act(lambda: world.service.resolve("web1", "n1"))
    world.other = ResourceState(name=NAME, connection="Connected")
    world.kernel.commands.clear()
    act(lambda: world.service.undo("web1"))
    assert restored == [(world.asides.path(disk_record(0)), Path("/dev/drbd1"))]
    assert world.kernel.commands == [f"primary {NAME}", f"secondary {NAME}"]
    assert ("n1", "split_brain.set_aside") in world.errands and world.asides.kept == []
    record = world.undo()
    assert record is not None and (record.node, record.kept, record.done, record.taking) == ("n1", "n2", True, False)


def test_half_taken_back_the_machine_is_not_started_and_the_rest_is_done_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path, length: int, progress: object) -> None:
        raise CommandFailed(program="copy", status=5, output="no.")

    world.split()
    act(lambda: world.service.resolve("web1", "n1"))
    world.other = ResourceState(name=NAME, connection="Connected")
    monkeypatch.setattr(split_brain.content, "restore", fail)
    error(lambda: world.service.undo("web1"))
    assert "not taken back to the end" in difference(world.store, disk_record(0))
    assert "undo first" in str(error(lambda: world.service.forget("web1")))
    monkeypatch.setattr(split_brain.content, "restore", lambda source, target, length, progress: None)
    act(lambda: world.service.undo("web1"))
    assert (
        world.errands.count(("n1", "split_brain.set_aside")) == 1
    )  # what is there now is a mixture, and nobody's past
    assert difference(world.store, disk_record(0)) == ""


def resolved(world: World) -> World:
    world.split()
    act(lambda: world.service.resolve("web1", "n1"))
    world.other = ResourceState(name=NAME, connection="Connected")
    world.kernel.commands.clear()
    return world


def runs(world: World) -> None:
    world.kernel.say(f"change resource name:{NAME} role:Primary")
    world.reader.wait(NAME, lambda state: state is not None and state.role == "Primary", 10)


def held(world: World, name: str) -> bool:
    with working_for(Task("vm.start", "web1", "bob", "n2")):
        try:
            with world.locks.hold(name, within=0):
                return False
        except Busy:
            return True


def test_the_machine_is_not_started_while_its_data_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool, bool, bool]] = []

    def look(when: str) -> None:
        blocked = difference(world.store, disk_record(0)) != ""
        seen.append((when, held(world, "vm:web1"), held(world, f"disk:{DISK}"), blocked))

    monkeypatch.setattr(split_brain.content, "restore", lambda source, target, length, progress: look("written"))
    resolved(world)
    monkeypatch.setattr(world, "ask_more", lambda: look("set aside"))
    act(lambda: world.service.undo("web1"))
    assert seen == [("set aside", True, True, True), ("written", True, True, True)]
    assert not held(world, "vm:web1") and difference(world.store, disk_record(0)) == ""


@pytest.mark.parametrize("change", ["runs", "moved", "fails"])
def test_what_changes_while_data_is_set_aside_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def happen() -> None:
        monkeypatch.setattr(world, "ask_more", lambda: None)
        if change == "runs":
            runs(world)
        elif change == "fails":
            raise NodeUnreachable(node="n1", reason="it is off.")
        else:
            with world.store.change() as now:
                now.edit(DiskRecord, DISK, vm=None, slot=None)

    restored: list[Path] = []
    monkeypatch.setattr(
        split_brain.content, "restore", lambda source, target, length, progress: restored.append(target)
    )
    resolved(world)
    monkeypatch.setattr(world, "ask_more", happen)
    error(lambda: world.service.undo("web1"))
    assert restored == [] and world.kernel.commands == [] and world.asides.kept == [DISK]
    record = world.undo()
    assert record is not None and (record.node, record.taking, record.mixed) == ("n2", False, False)
    assert world.asked[-1] == ("n1", "drop_aside") and world.journal.due() == {}


def test_a_crash_while_data_is_set_aside_leaves_the_machine_to_be_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved(world)
    task = Task("split_brain.take_back", DISK, "alice", "n2")
    with pytest.MonkeyPatch.context() as patch, working_for(task), pytest.raises(McvirtError):
        patch.setattr(world, "ask_more", lambda: (_ for _ in ()).throw(Conflict(text="died")))
        patch.setattr(world.journal, "run", lambda act, arguments: (_ for _ in ()).throw(Conflict(text="died")))
        world.service.take_back(DISK, "n2")
    assert difference(world.store, disk_record(0)) != ""
    assert world.journal.settle(task.id) == [] and difference(world.store, disk_record(0)) == ""
    assert world.asked[-1] == ("n1", "drop_aside")


def test_setting_aside_for_the_other_node_keeps_the_machine_from_starting_here(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    make = world.asides.make
    monkeypatch.setattr(
        world.asides,
        "make",
        lambda disk, progress: (seen.append((held(world, "vm:web1"), held(world, f"disk:{DISK}"))), make(disk)),
    )
    assert "not about to be" in str(error(lambda: world.service.set_aside(DISK, "n2")))
    undo = SplitUndoRecord(disk=DISK, node="n1", kept="n2", made=datetime.now(UTC), by="alice", done=True, taking=True)
    with world.store.change() as change:
        change.put(undo)
    act(lambda: world.service.set_aside(DISK, "n2"))
    assert seen == [(True, True)] and world.asides.kept == [DISK]
    runs(world)
    assert "its machine runs" in str(error(lambda: world.service.set_aside(DISK, "n2")))


def test_forgetting_deletes_the_copy(world: World) -> None:
    world.split()
    act(lambda: world.service.resolve("web1", "n1"))
    act(lambda: world.service.forget("web1"))
    assert world.asides.kept == [] and world.undo() is None


def test_forgetting_that_fails_promises_nothing_that_is_gone(world: World) -> None:
    world.split()
    act(lambda: world.service.resolve("web1", "n1"))
    refusing = pytest.MonkeyPatch()
    refusing.setattr(world.store, "change", lambda: (_ for _ in ()).throw(Conflict(text="no")))
    error(lambda: world.service.forget("web1"))
    refusing.undo()
    assert world.asides.kept == [DISK] and world.undo() is not None and world.journal.due() == {}
    world.asides.stuck = CommandFailed(program="lvremove", status=5, output="busy.")
    task = Task("split_brain.drop", DISK, "alice", "n2")
    with working_for(task), pytest.raises(UndoIncomplete):
        world.service.forget("web1")
    assert world.undo() is None and world.asides.kept == [DISK]
    world.asides.stuck = None
    assert world.journal.settle(task.id) == [] and world.asides.kept == []


def half_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Of two disks the second could not be taken back; returns what is written to from then on."""
    restored: list[Path] = []
    monkeypatch.setattr(
        split_brain.content, "restore", lambda source, target, length, progress: restored.append(source)
    )

    def fail_second() -> None:
        if len(world.errands) == 2:
            raise NodeUnreachable(node="n1", reason="it is off.")

    world.second_disk()
    world.put_kept(DISK, "n2")
    world.put_kept(IDS[1], "n2")
    world.asides.kept = [DISK, IDS[1]]
    with monkeypatch.context() as failing:
        failing.setattr(world, "ask_more", fail_second)
        error(lambda: world.service.undo("web1"))
    assert kept_on(world) == ["n1", "n2"] and len(restored) == 1
    restored.clear()
    world.errands.clear()
    return restored


def kept_on(world: World) -> list[str]:
    records = [world.store.get(SplitUndoRecord, disk) for disk in IDS[:2]]
    return [record.node for record in records if record is not None]


def test_an_undo_that_failed_half_way_goes_on_where_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    restored = half_undone(world, monkeypatch)
    act(lambda: world.service.undo("web1"))
    assert kept_on(world) == ["n1", "n1"] and restored == [world.asides.path(disk_record(1))]
    assert world.errands == [("n1", "split_brain.set_aside")]
    world.errands.clear()
    act(lambda: world.service.undo("web1"))  # nothing is left of it: this one takes back what that one has set aside
    assert world.errands == [("n1", "split_brain.take_back")] * 2


def test_an_undo_that_failed_half_way_can_be_gone_on_with_disk_by_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_undone(world, monkeypatch)
    monkeypatch.setattr(world, "ask_more", lambda: world.put_kept(DISK, "n2"))
    act(lambda: world.service.undo("web1", 1))  # as it was before: the other one was never undone
    assert world.errands == [("n1", "split_brain.take_back")]
    monkeypatch.undo()
    monkeypatch.setattr(split_brain.content, "restore", lambda source, target, length, progress: None)
    world.asides.kept = [DISK, IDS[1]]
    world.errands.clear()
    act(lambda: world.service.undo("web1"))
    assert kept_on(world) == ["n1", "n1"] and len(world.errands) == 2


def test_an_undo_of_one_that_failed_keeps_no_other_from_being_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_brain.content, "restore", lambda source, target, length, progress: None)
    world.second_disk()
    world.put_kept(DISK, "n2")
    world.put_kept(IDS[1], "n2")
    world.asides.kept = [DISK, IDS[1]]
    with monkeypatch.context() as failing:

        def fail() -> None:
            raise NodeUnreachable(node="n1", reason="it is off.")

        failing.setattr(world, "ask_more", fail)
        error(lambda: world.service.undo("web1", 2))
    assert kept_on(world) == ["n2", "n2"]
    act(lambda: world.service.undo("web1"))
    assert kept_on(world) == ["n1", "n1"]


def test_what_another_has_taken_back_meanwhile_is_not_taken_back_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_undone(world, monkeypatch)
    world.put_kept(DISK, "n2")
    world.put_kept(IDS[1], "n2")
    world.asides.kept = [DISK, IDS[1]]
    monkeypatch.setattr(world.asides, "check_room", lambda disks: world.put_kept(DISK, "n1"))
    assert "meanwhile" in str(error(lambda: world.service.undo("web1")))
    records = [world.store.get(SplitUndoRecord, disk) for disk in IDS[:2]]
    assert world.errands == [] and not any(record.wanted for record in records if record is not None)


def test_what_is_gone_is_not_taken_back(world: World) -> None:
    world.split()
    act(lambda: world.service.resolve("web1", "n1"))
    world.other = ResourceState(name=NAME, connection="Connected")
    world.asides.kept = []
    assert "is gone" in str(error(lambda: world.service.undo("web1")))
    assert difference(world.store, disk_record(0)) == ""
    assert ("n1", "split_brain.set_aside") not in world.errands
    act(lambda: world.service.forget("web1"))
    assert world.undo() is None


def test_of_a_hard_drive_that_was_grown_the_rest_stays(world: World, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"1" * SIZE)
    target.write_bytes(b"2" * (SIZE + 65536))
    assert split_brain.content.restore(source, target, length=SIZE) == SIZE
    assert target.read_bytes() == b"1" * SIZE + b"2" * 65536
    given: list[int | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_brain.content, "restore", lambda source, target, length, progress: given.append(length))
        world.split()
        act(lambda: world.service.resolve("web1", "n1"))
        act(lambda: world.service.undo("web1"))
    assert given == [SIZE]


def test_restoring_writes_what_differs(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    data = bytearray(SIZE)
    target.write_bytes(data)
    data[5 * 65536] = 1
    data[-1] = 1
    source.write_bytes(data)
    told: list[int] = []
    assert split_brain.content.restore(source, target, progress=lambda done, total: told.append(done)) == 2 * 65536
    assert target.read_bytes() == data and told[-1] == SIZE
